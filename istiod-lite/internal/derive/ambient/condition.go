package ambient

import (
	"slices"
	"strings"

	apimesh "istio.io/api/mesh/v1alpha1"

	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/istiod-lite/internal/derive/kube"
)

// Condition types that this package decides.
const (
	ConditionWaypointBound     = "istio.io/WaypointBound"
	ConditionWaypointMissing   = "istio.io/WaypointMissing"
	ConditionVisibilityApplied = "istio.io/VisibilityApplied"
	ConditionZtunnelAccepted   = "ZtunnelAccepted"
	ConditionWaypointAccepted  = "WaypointAccepted"
)

// Condition is one entry for the status of an object.
type Condition struct {
	Type    string
	True    bool
	Reason  string
	Message string
	// ObservedGeneration is 0 for kinds whose conditions carry none.
	ObservedGeneration int64
}

// ObjectConditions are all conditions that this package has for an object, ordered by type. None means that those which
// an earlier state had are to be removed.
type ObjectConditions struct {
	Object     manifest.Key
	Conditions []Condition
}

func equalConditions(a, b []Condition) bool { return slices.Equal(a, b) }

func sortConditions(list []Condition) []Condition {
	slices.SortFunc(list, func(a, b Condition) int { return strings.Compare(a.Type, b.Type) })
	return list
}

// boundConditions tells the owner of a service what became of its waypoint labels.
func boundConditions(a Attachment, labels, nsLabels map[string]string) []Condition {
	switch {
	case a.refused != nil:
		return []Condition{{Type: ConditionWaypointBound, Reason: a.refused.reason, Message: a.refused.message}}
	case a.Waypoint == nil:
		return nil
	}
	c := Condition{
		Type: ConditionWaypointBound, True: true, Reason: ReasonWaypointAccepted,
		Message: "Successfully attached to waypoint " + a.Waypoint.Name.String(),
	}
	if use, present := kube.IngressUsesWaypoint(labels, nsLabels); use {
		c.Message += ". Ingress traffic will traverse the waypoint"
	} else if present {
		c.Message += ". Ingress traffic is not using the waypoint; set the label " + kube.LabelIngressUseWaypoint +
			" to true to change that"
	}
	if a.noCanary != "" {
		c.Message += ". Canary waypoint not attached: " + a.noCanary
	}
	return []Condition{c}
}

// entryConditions are those that only ServiceEntries have.
func entryConditions(hosts []string, racing, bound, configured bool, visibility apimesh.ServiceEntryVisibility_Visibility) []Condition {
	var out []Condition
	switch {
	case bound:
	case slices.ContainsFunc(hosts, wildcard):
		out = append(out, Condition{
			Type: ConditionWaypointMissing, True: true, Reason: "NoWaypointForWildcardService",
			Message: "wildcard hosts are resolved by a waypoint; bind one by the label " + kube.LabelUseWaypoint,
		})
	case racing:
		out = append(out, Condition{
			Type: ConditionWaypointMissing, True: true, Reason: "NoWaypointForRacingConnectStrategy",
			Message: "the connect strategy is carried out by a waypoint; bind one by the label " + kube.LabelUseWaypoint,
		})
	}
	if configured {
		c := Condition{Type: ConditionVisibilityApplied, True: true, Reason: "Public", Message: "visible to all namespaces"}
		if visibility == apimesh.ServiceEntryVisibility_NAMESPACE {
			c.Reason, c.Message = "Namespace", "visible to clients of its own namespace only, by the mesh's serviceEntryVisibility"
		}
		if visibility != apimesh.ServiceEntryVisibility_NONE {
			out = append(out, c)
		}
	}
	return out
}

// target is one targetRef of a policy and what was found for it.
type target struct {
	name  string // Kind.group:namespace/name
	found bool
	bound bool
	// invalid says why the reference can never work; empty if it can.
	invalid string
}

// targetConditions tells the owner of a policy with targets which of them were found.
func targetConditions(targets []target, generation int64) Condition {
	c := Condition{Type: ConditionWaypointAccepted, ObservedGeneration: generation}
	var good, bad []string
	for _, t := range targets {
		if t.found && t.bound && t.invalid == "" {
			good = append(good, t.name)
		} else {
			bad = append(bad, t.name)
		}
	}
	switch {
	case len(bad) == 0:
		c.True, c.Reason, c.Message = true, ReasonAccepted, "bound to "+strings.Join(good, ", ")
	case len(good) > 0:
		c.True, c.Reason, c.Message = true, "PartiallyInvalid", "Invalid targetRefs: "+strings.Join(bad, ", ")
	case len(targets) > 1:
		c.Reason, c.Message = "Invalid", "Invalid targetRefs: "+strings.Join(bad, ", ")
	case targets[0].invalid != "":
		c.Reason, c.Message = "Invalid", targets[0].name+": "+targets[0].invalid
	case !targets[0].found:
		c.Reason, c.Message = "TargetNotFound", targets[0].name+" does not exist"
	default:
		c.Reason, c.Message = "AncestorNotBound", targets[0].name+" is not bound to a waypoint"
	}
	return c
}
