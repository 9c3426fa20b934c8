package authz

import (
	"fmt"
	"iter"
	"net/netip"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
)

// Policy is the data that Evaluate works on.
type Policy = mesh.Policy

// Facts are what a policy may look at.
type Facts struct {
	// Src is the TCP peer; never what a header claims.
	Src netip.AddrPort
	// Dst is where the application listens: own address and target port.
	Dst netip.AddrPort
	// Peer is the authenticated identity; zero for plaintext.
	Peer identity.ID
}

// Verdict is the outcome. The zero Verdict refuses.
type Verdict struct {
	Allowed bool
	// Policy is the "namespace/name" that decided; empty if the absence of a match did.
	Policy string
	// Reason says why, in Istio's words where it refuses.
	Reason string
}

// Err is nil for an allowed connection and *Denied otherwise.
func (v Verdict) Err() error {
	if v.Allowed {
		return nil
	}
	return &Denied{Policy: v.Policy, Reason: v.Reason}
}

// Denied is the refusal of a connection by policy.
type Denied struct {
	// Policy is the DENY policy that matched; empty where no ALLOW policy did.
	Policy string
	Reason string
}

func (d *Denied) Error() string { return "connection closed due to policy rejection: " + d.Reason }

// Event is one thing worth a debug line: a policy that matched, or a step that decided.
type Event struct {
	// Text is one of Istio's messages.
	Text string
	// Policy is "namespace/name", empty where no single policy is concerned.
	Policy string
}

// UnknownPolicy is the Text of the Event about a policy that a workload names and the View lacks.
const UnknownPolicy = "skipping unknown policy"

// reasonNoAllow is Istio's text for "an ALLOW policy exists and none matched".
const reasonNoAllow = "allow policies exist, but none allowed"

// Evaluate judges a connection by the policies that apply to its destination.
func Evaluate(policies []*Policy, f Facts) Verdict {
	return evaluate(slice(policies), f, nil)
}

// Judge judges a connection to w by the policies of one View.
// A policy that w names and the View lacks is skipped, as the protocol wants; note hears of it.
func Judge(v *mesh.View, w *mesh.Workload, f Facts, note func(Event)) Verdict {
	if w == nil {
		return Verdict{Reason: "the destination workload is unknown"}
	}
	return evaluate(v.PoliciesFor(w), f, note)
}

func slice(policies []*Policy) iter.Seq2[string, *Policy] {
	return func(yield func(string, *Policy) bool) {
		for _, p := range policies {
			if !yield(p.Resource, p) {
				return
			}
		}
	}
}

// evaluate follows the decision order of the L4 specification: DENY, then ALLOW, dry run aside.
func evaluate(policies iter.Seq2[string, *Policy], f Facts, note func(Event)) Verdict {
	if note == nil {
		note = func(Event) {}
	}
	var t tally
	for name, p := range policies {
		if p == nil {
			note(Event{Text: UnknownPolicy, Policy: name})
			continue
		}
		t.count(p, Matches(p, f), note)
	}
	if t.deny != nil {
		note(Event{Text: "deny policy match", Policy: t.deny.Key()})
		return Verdict{Policy: t.deny.Key(), Reason: fmt.Sprintf("explicitly denied by: %s", t.deny.Key())}
	}
	switch {
	case !t.allows && t.dryAllows && !t.dryAllowed:
		note(Event{Text: "dry-run: no allow policies match"})
		fallthrough
	case !t.allows:
		note(Event{Text: "no allow policies, allow"})
		return Verdict{Allowed: true, Reason: "no allow policies, allow"}
	case t.allow != nil:
		note(Event{Text: "allow policy match", Policy: t.allow.Key()})
		return Verdict{Allowed: true, Policy: t.allow.Key(), Reason: "allow policy match"}
	}
	note(Event{Text: "no allow policies matched"})
	return Verdict{Reason: reasonNoAllow}
}

// tally is what the policies said together.
type tally struct {
	// deny and allow are the first enforced policies that matched.
	deny, allow *Policy
	// allows: there is an enforced ALLOW; dryAllows: there is a dry-run one.
	allows, dryAllows, dryAllowed bool
}

func (t *tally) count(p *Policy, hit bool, note func(Event)) {
	switch {
	case p.Action == mesh.Deny && p.DryRun:
		if hit {
			note(Event{Text: "dry-run: deny policy match", Policy: p.Key()})
		}
	case p.Action == mesh.Deny:
		if hit && t.deny == nil {
			t.deny = p
		}
	case p.DryRun:
		t.dryAllows = true
		if hit {
			t.dryAllowed = true
			note(Event{Text: "dry-run: allow policy match", Policy: p.Key()})
		}
	default:
		t.allows = true
		if hit && t.allow == nil {
			t.allow = p
		}
	}
}
