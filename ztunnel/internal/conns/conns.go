package conns

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"

	"github.com/marrowmesh/marrow/internal/authz"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/obs"
)

// ErrPolicyChange is the cause of a cut by a change of policy. The text is what operators of ztunnel know.
var ErrPolicyChange = errors.New("connection closed due to policy change")

// Direction is which way a connection was captured.
type Direction uint8

// The directions.
const (
	Inbound Direction = iota
	Outbound
)

// Entry describes one connection.
type Entry struct {
	// Pod is the uid of the pod that the connection was captured in.
	Pod       string
	Direction Direction
	Src       netip.AddrPort
	// Original is what the client asked for: a service's name if known, else an address. May be empty.
	Original string
	// Actual is where the connection really goes.
	Actual netip.AddrPort
	// Protocol is TCP, HBONE or DOUBLEHBONE.
	Protocol string
	// Workload is the destination whose policies apply. Only inbound connections are judged.
	Workload *mesh.Workload
	// Facts are what those policies look at.
	Facts authz.Facts
}

// Views is where the present View and the news of the next one come from.
type Views interface {
	Get() *mesh.View
	// Changed is closed at the next change.
	Changed() <-chan struct{}
}

// Table holds the live connections. All methods are safe for concurrent use.
type Table struct {
	views Views
	log   *obs.Logger
	// info makes the lines about policy decisions INFO instead of DEBUG.
	info bool

	mu     sync.Mutex
	live   map[*Live]struct{}
	owners map[context.Context]*owner

	// judged is, per workload uid, the policies by which all its connections were last judged,
	// with the View of version through. Only Rejudge uses both; judging makes its calls take turns.
	judging sync.Mutex
	judged  map[string][]*mesh.Policy
	through uint64
}

// NewTable makes an empty table. policyInfo raises the lines about policy decisions from DEBUG to INFO.
func NewTable(views Views, log *obs.Logger, policyInfo bool) *Table {
	return &Table{views: views, log: log, info: policyInfo, live: map[*Live]struct{}{}, owners: map[context.Context]*owner{}, judged: map[string][]*mesh.Policy{}}
}

// Live is one connection in the table.
type Live struct {
	life

	table *Table
	entry Entry
	// owner has the context that the connection was registered with, and the others of it.
	owner      *owner
	next, prev *Live // guarded by table.mu
	// version is the View's by which Admit judged; 0 until then. Guarded by table.mu.
	version uint64
}

// Register puts a connection into the table. Its context ends with ctx, when it is cut, or by Close. ctx must be
// comparable, as all of package context are.
func (t *Table) Register(ctx context.Context, e Entry) *Live {
	l := &Live{table: t, entry: e}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.live[l] = struct{}{}
	t.join(ctx, l)
	return l
}

// Admit registers an inbound connection and then judges it by the present View. A refused one
// is out of the table again, and the error is an *authz.Denied.
func (t *Table) Admit(ctx context.Context, e Entry) (*Live, error) {
	l := t.Register(ctx, e)
	v := t.views.Get()
	if verdict := t.judge(v, &l.entry); !verdict.Allowed {
		l.Close()
		return nil, verdict.Err()
	}
	t.mu.Lock()
	l.version = v.Version()
	t.mu.Unlock()
	return l, nil
}

// judge asks with the workload as it is now, so that a change of its list of policies counts too.
func (t *Table) judge(v *mesh.View, e *Entry) authz.Verdict {
	return authz.Judge(v, current(v, e.Workload), e.Facts, func(ev authz.Event) { t.note(e, ev) })
}

// current is the workload as the View knows it, or as it was known when it left the View.
func current(v *mesh.View, w *mesh.Workload) *mesh.Workload {
	if w == nil {
		return nil
	}
	if now := v.WorkloadByUID(w.UID); now != nil {
		return now
	}
	return w
}

func (t *Table) note(e *Entry, ev authz.Event) {
	fields := []obs.Field{obs.F("src.addr", e.Facts.Src), obs.F("dst.addr", e.Facts.Dst)}
	if ev.Policy != "" {
		fields = append(fields, obs.F("policy", ev.Policy))
	}
	switch {
	case ev.Text == authz.UnknownPolicy:
		t.log.Warn(ev.Text, fields...)
	case t.info:
		t.log.Info(ev.Text, fields...)
	default:
		t.log.Debug(ev.Text, fields...)
	}
}

// Context ends when the connection must end; context.Cause says why. Live has its AfterFunc, which costs less than
// package context's.
func (l *Live) Context() context.Context { return &l.life }

// Cut is the reason for which the connection was cut, nil if it was not. What else hangs on the same context, such as the
// tunnel's connection, may end before the news of its end comes here: so the context itself is asked as well.
func (l *Live) Cut() error {
	if err := l.why(); err != nil {
		return err
	}
	if ctx := l.owner.ctx; ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// Close takes the connection out of the table. Calling it again does nothing.
func (l *Live) Close() {
	t := l.table
	t.mu.Lock()
	if _, here := t.live[l]; here {
		delete(t.live, l)
		t.leave(l)
	}
	t.mu.Unlock()
	l.cancel(context.Canceled)
}

// Run judges again after each change, until ctx ends.
func (t *Table) Run(ctx context.Context) error {
	for {
		changed := t.views.Changed()
		t.Rejudge(t.views.Get())
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// Rejudge cuts the inbound connections that a View refuses. Connections whose policies are
// those of the last time are not looked at again.
func (t *Table) Rejudge(v *mesh.View) {
	t.judging.Lock()
	defer t.judging.Unlock()
	byWorkload := map[string][]*Live{}
	fresh := map[*Live]bool{} // admitted since, by a View that we never saw
	t.mu.Lock()
	for l := range t.live {
		if l.entry.Direction == Inbound && l.entry.Workload != nil {
			byWorkload[l.entry.Workload.UID] = append(byWorkload[l.entry.Workload.UID], l)
			if l.version == 0 || l.version > t.through {
				fresh[l] = true
			}
		}
	}
	t.mu.Unlock()
	judged := make(map[string][]*mesh.Policy, len(byWorkload))
	for uid, lives := range byWorkload {
		var policies []*mesh.Policy
		for _, p := range v.PoliciesFor(current(v, lives[0].entry.Workload)) {
			policies = append(policies, p)
		}
		judged[uid] = policies
		before, known := t.judged[uid]
		same := known && slices.Equal(before, policies)
		for _, l := range lives {
			if same && !fresh[l] {
				continue
			}
			if verdict := t.judge(v, &l.entry); !verdict.Allowed {
				t.cut(l, verdict)
			}
		}
	}
	t.judged, t.through = judged, v.Version()
}

func (t *Table) cut(l *Live, verdict authz.Verdict) {
	if l.Cut() != nil {
		return
	}
	t.log.Info("connection closed because it's no longer allowed after a policy update",
		obs.F("src.addr", l.entry.Facts.Src), obs.F("src.identity", l.entry.Facts.Peer.String()),
		obs.F("dst.addr", l.entry.Facts.Dst), obs.F("workload", l.entry.Workload.UID), obs.F("reason", verdict.Reason))
	l.cancel(ErrPolicyChange)
}

// CutPod ends all connections of a pod with a cause.
func (t *Table) CutPod(pod string, cause error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for l := range t.live {
		if l.entry.Pod == pod {
			l.cancel(cause)
		}
	}
}

// List returns the connections of a pod in one direction, sorted by source.
func (t *Table) List(pod string, d Direction) []Entry {
	var out []Entry
	t.mu.Lock()
	for l := range t.live {
		if l.entry.Pod == pod && l.entry.Direction == d {
			out = append(out, l.entry)
		}
	}
	t.mu.Unlock()
	slices.SortFunc(out, func(a, b Entry) int {
		return cmp.Or(a.Src.Compare(b.Src), a.Actual.Compare(b.Actual))
	})
	return out
}

// Count is how many connections live.
func (t *Table) Count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.live)
}
