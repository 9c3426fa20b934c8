package flow

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/marrowmesh/marrow/internal/claims"
	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/obs"
)

// Reporter says which end of the connection tells about it.
type Reporter uint8

// The reporters.
const (
	Source Reporter = iota
	Destination
)

func (r Reporter) String() string {
	if r == Source {
		return "source"
	}
	return "destination"
}

func (r Reporter) direction() string {
	if r == Source {
		return "outbound"
	}
	return "inbound"
}

// Flag is the response_flags label.
type Flag string

// The flags.
const (
	NoFlag        Flag = "-"
	Deny          Flag = "DENY"
	Connect       Flag = "CONNECT"
	H2Failure     Flag = "H2_HANDSHAKE_FAILURE"
	NetworkPolicy Flag = "NETWORK_POLICY"
	IdentityError Flag = "IDENTITY_ERROR"
)

// Failure is an error that knows its flag.
type Failure struct {
	Flag Flag
	Err  error
}

func (f *Failure) Error() string { return f.Err.Error() }
func (f *Failure) Unwrap() error { return f.Err }

// Fail gives an error a flag.
func Fail(flag Flag, err error) error { return &Failure{Flag: flag, Err: err} }

// flagOf finds the flag of an error; an error without one is a failed connection.
func flagOf(err error) Flag {
	if err == nil {
		return NoFlag
	}
	if f, ok := errors.AsType[*Failure](err); ok {
		return f.Flag
	}
	return Connect
}

// Facts describe one connection to the log and the metrics.
type Facts struct {
	Reporter Reporter
	// Src is the client's socket as the proxy sees it.
	Src netip.AddrPort
	// Dst is the next hop (outbound), the own HBONE address (inbound), or the original destination.
	Dst netip.AddrPort
	// HBONETarget is the authority of the CONNECT, empty without one.
	HBONETarget string
	// SourceWorkload and DestWorkload are nil if unknown.
	SourceWorkload, DestWorkload *mesh.Workload
	// SourceBaggage and DestBaggage fill in where the workload is unknown; nil otherwise.
	SourceBaggage, DestBaggage *claims.Baggage
	// SourceID is the authenticated client, zero for plaintext.
	SourceID identity.ID
	// DestID is the destination's identity.
	DestID  identity.ID
	Service *mesh.Service
	// Mutual says that the hop is mutually authenticated.
	Mutual bool
}

// Recorder writes the records of all connections.
type Recorder struct {
	metrics *Metrics
	access  *obs.Logger
	now     func() time.Time
}

// NewRecorder makes a recorder. The access log is the scope "access".
func NewRecorder(m *Metrics, log *obs.Logger) *Recorder {
	return &Recorder{metrics: m, access: log.Named("access"), now: time.Now}
}

// Socket counts an accepted socket until the returned function is called.
func (r *Recorder) Socket(rep Reporter) (closed func()) { return r.metrics.Socket(rep) }

// Flow is the record of one connection while it lives.
type Flow struct {
	rec   *Recorder
	facts Facts
	start time.Time
	// open is the series of the labels known at the start.
	open *series
	// up counts bytes from the client to the server, down the other way.
	up, down atomic.Int64
}

// Open starts the record of a connection.
func (r *Recorder) Open(f Facts) *Flow {
	fl := &Flow{rec: r, facts: f, start: r.now()}
	fl.open = r.metrics.at(labelsOf(&f))
	fl.open.add(famOpened, 1)
	fl.open.add(famSent, 0)
	fl.open.add(famReceived, 0)
	if r.access.Enabled(obs.LevelDebug) {
		r.access.Debug("connection opened", fl.fields(nil)...)
	}
	return fl
}

// Bytes counts: sent went from the client to the server, received came back.
func (f *Flow) Bytes(sent, received int64) {
	if sent > 0 {
		f.up.Add(sent)
		f.open.add(famReceived, uint64(sent))
	}
	if received > 0 {
		f.down.Add(received)
		f.open.add(famSent, uint64(received))
	}
}

// Destination replaces what is known of the destination by its own, authenticated account.
// Call it before bytes flow; the bytes then count for the new labels.
func (f *Flow) Destination(b claims.Baggage, peer identity.ID) {
	f.facts.DestWorkload, f.facts.DestBaggage, f.facts.DestID = nil, &b, peer
	f.open = f.rec.metrics.at(labelsOf(&f.facts))
}

// Close ends the record. A nil error is a connection that ended as connections do.
func (f *Flow) Close(err error) {
	flag := flagOf(err)
	end := f.rec.metrics.at(labelsOf(&f.facts).withFlag(flag))
	end.add(famClosed, 1)
	if flag != NoFlag {
		end.add(famFailed, 1)
	}
	if err != nil {
		f.rec.access.Error("connection complete", f.fields(err)...)
		return
	}
	f.rec.access.Info("connection complete", f.fields(nil)...)
}

// Refused tells of a connection that never got as far as a record.
func (r *Recorder) Refused(rep Reporter, src, dst netip.AddrPort, err error) {
	r.access.Warn("connection failed",
		obs.F("src.addr", src), obs.F("dst.addr", dst), obs.F("direction", rep.direction()), obs.Err(err))
}

// fields are the access log's, in Istio's order; what is unknown is left out.
func (f *Flow) fields(err error) []obs.Field {
	out := make([]obs.Field, 0, 20)
	text := func(key, value string) {
		if value != "" {
			out = append(out, obs.F(key, value))
		}
	}
	fa := &f.facts
	out = append(out, obs.F("src.addr", fa.Src))
	if w := fa.SourceWorkload; w != nil {
		text("src.workload", w.Name)
		text("src.namespace", w.Namespace)
	} else if fa.SourceBaggage != nil {
		text("src.workload", fa.SourceBaggage.Service)
		text("src.namespace", fa.SourceBaggage.Namespace)
	}
	if fa.Mutual {
		text("src.identity", fa.SourceID.String())
	}
	text("src.cluster", clusterOf(fa.SourceWorkload, fa.SourceBaggage))
	out = append(out, obs.F("dst.addr", fa.Dst))
	if ap, err := netip.ParseAddrPort(fa.HBONETarget); err == nil {
		out = append(out, obs.F("dst.hbone_addr", ap))
	} else {
		text("dst.hbone_addr", fa.HBONETarget)
	}
	if fa.Service != nil {
		text("dst.service", fa.Service.Hostname)
	}
	if w := fa.DestWorkload; w != nil {
		text("dst.workload", w.Name)
		text("dst.namespace", w.Namespace)
	} else if fa.DestBaggage != nil {
		text("dst.workload", fa.DestBaggage.WorkloadName)
		text("dst.namespace", fa.DestBaggage.Namespace)
	}
	if fa.Mutual {
		text("dst.identity", fa.DestID.String())
	}
	text("dst.cluster", clusterOf(fa.DestWorkload, fa.DestBaggage))
	sent, received := f.up.Load(), f.down.Load()
	if fa.Reporter == Destination {
		sent, received = received, sent
	}
	out = append(out, obs.F("direction", fa.Reporter.direction()),
		obs.F("bytes_sent", sent), obs.F("bytes_recv", received),
		obs.F("duration", fmt.Sprintf("%dms", f.rec.now().Sub(f.start).Milliseconds())))
	if err != nil {
		out = append(out, obs.Err(err))
	}
	return out
}

func clusterOf(w *mesh.Workload, b *claims.Baggage) string {
	switch {
	case w != nil:
		return w.ClusterID
	case b != nil:
		return b.Cluster
	}
	return ""
}
