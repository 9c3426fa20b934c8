package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Reconnect delays of Istio's ztunnel: from 10 ms, doubling, at most 15 s.
const (
	backoffMin = 10 * time.Millisecond
	backoffMax = 15 * time.Second
)

// EventKind says what a client [Event] reports.
type EventKind int

// The kinds of client events.
const (
	// EventConnected: the stream is open and the first requests are sent.
	EventConnected EventKind = iota
	// EventResponse: one response arrived; URL and Bytes are set.
	EventResponse
	// EventRejected: a response was refused in part; URL and Err are set.
	EventRejected
	// EventTerminated: the stream ended; Reason and Err (if any) are set.
	EventTerminated
)

// Event is what metrics and logs are made of.
type Event struct {
	Kind  EventKind
	URL   string
	Bytes int
	// Reason is ConnectionError, Error, Reconnect or Complete, as in istio_xds_connection_terminations_total.
	Reason string
	// Wait is the time until the next attempt.
	Wait time.Duration
	Err  error
}

// ClientConfig configures a [Client].
type ClientConfig struct {
	// Dial makes the channel; it is called again only when it failed. The channel reconnects by itself.
	Dial func(ctx context.Context) (*grpc.ClientConn, error)
	// Node identifies this client; sent with the first request of each type.
	Node *corev3.Node
	// Types in the order in which they are first asked for.
	Types []*Type
	// OnEvent observes the stream; nil ignores. It must not block.
	OnEvent func(Event)
}

// Client keeps one delta ADS stream alive.
type Client struct {
	cfg    ClientConfig
	synced chan struct{}

	mu     sync.Mutex
	types  map[string]*typeState
	stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient // nil while disconnected
}

// typeState is what outlives a connection.
type typeState struct {
	*Type
	wildcard bool
	names    map[string]struct{}
	// versions holds what was accepted; a refused resource keeps its older entry, or none.
	versions map[string]string
	asked    bool // on the present stream
	acked    bool // ever
}

// NewClient returns a client that has not connected yet.
func NewClient(cfg ClientConfig) *Client {
	c := &Client{cfg: cfg, synced: make(chan struct{}), types: map[string]*typeState{}}
	for _, t := range cfg.Types {
		ts := &typeState{Type: t, wildcard: t.Names == nil, names: map[string]struct{}{}, versions: map[string]string{}}
		for _, n := range t.Names {
			ts.names[n] = struct{}{}
		}
		c.types[t.URL] = ts
	}
	return c
}

// Synced is closed when each wildcard type had its first fully accepted response.
func (c *Client) Synced() <-chan struct{} { return c.synced }

// SetNames replaces what a named type asks for. Names that go are forgotten; it
// may be called from a handler and is sent at once when connected.
func (c *Client) SetNames(url string, names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ts := c.types[url]
	if ts == nil || ts.wildcard {
		return
	}
	want := make(map[string]struct{}, len(names))
	var added, gone []string
	for _, n := range names {
		if _, dup := want[n]; dup {
			continue
		}
		want[n] = struct{}{}
		if _, have := ts.names[n]; !have {
			added = append(added, n)
		}
	}
	for n := range ts.names {
		if _, keep := want[n]; !keep {
			gone = append(gone, n)
			delete(ts.versions, n)
		}
	}
	ts.names = want
	if c.stream == nil || (len(added) == 0 && len(gone) == 0) {
		return
	}
	if !ts.asked {
		// The stream's end reports a failed send; the next one asks again.
		_ = c.ask(c.stream, ts)
		return
	}
	_ = c.stream.Send(&discovery.DeltaDiscoveryRequest{
		TypeUrl: url, ResourceNamesSubscribe: added, ResourceNamesUnsubscribe: gone,
	})
}

// Run connects and reconnects until ctx ends; it returns nil then.
func (c *Client) Run(ctx context.Context) error {
	backoff := backoffMin
	var conn *grpc.ClientConn
	defer func() {
		if conn != nil {
			_ = conn.Close()
		}
	}()
	for ctx.Err() == nil {
		var reason string
		var wait time.Duration
		var err error
		if conn == nil {
			conn, err = c.cfg.Dial(ctx)
		}
		if err == nil {
			err = c.session(ctx, conn)
		}
		reason, wait, backoff = next(err, backoff)
		if ctx.Err() != nil {
			return nil
		}
		c.event(Event{Kind: EventTerminated, Reason: reason, Wait: wait, Err: err})
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// errConnect marks a failure before the stream carried anything.
var errConnect = errors.New("cannot open the discovery stream")

// next classifies the end of a stream as Istio's ztunnel does.
func next(err error, backoff time.Duration) (reason string, wait, after time.Duration) {
	slower := min(backoffMax, 2*backoff)
	switch st, isStatus := status.FromError(err); {
	case err == nil:
		return "Complete", 0, backoffMin
	case errors.Is(err, errConnect):
		return "ConnectionError", slower, slower
	case isStatus && transient(st):
		return "Reconnect", backoffMin, backoffMin
	default:
		return "Error", slower, slower
	}
}

func transient(st *status.Status) bool {
	switch st.Code() {
	case codes.Unknown, codes.Canceled, codes.DeadlineExceeded:
		return true
	case codes.Unavailable:
		return strings.Contains(st.Message(), "transport is closing") || strings.Contains(st.Message(), "received prior goaway")
	default:
		return false
	}
}

func (c *Client) event(e Event) {
	if c.cfg.OnEvent != nil {
		c.cfg.OnEvent(e)
	}
}

// session runs one stream to its end.
func (c *Client) session(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", errConnect, err)
	}
	c.mu.Lock()
	for _, t := range c.cfg.Types {
		ts := c.types[t.URL]
		ts.asked = false
		if err = c.ask(stream, ts); err != nil {
			break
		}
	}
	if err == nil {
		c.stream = stream
	}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.stream = nil
		c.mu.Unlock()
	}()
	if err == nil {
		c.event(Event{Kind: EventConnected})
	}
	// A failed Send leaves its cause in Recv.
	for first := true; ; first = false {
		resp, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && first && status.Code(err) == codes.Unavailable:
			return fmt.Errorf("%w: %w", errConnect, err)
		case err != nil:
			return err
		}
		c.event(Event{Kind: EventResponse, URL: resp.GetTypeUrl(), Bytes: proto.Size(resp)})
		c.handle(ctx, stream, resp)
	}
}

// ask sends the first request of a type on a stream; c.mu is held.
func (c *Client) ask(stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, ts *typeState) error {
	if !ts.wildcard && len(ts.names) == 0 {
		return nil // an empty list would mean everything
	}
	req := &discovery.DeltaDiscoveryRequest{Node: c.cfg.Node, TypeUrl: ts.URL, InitialResourceVersions: maps.Clone(ts.versions)}
	for n := range ts.names {
		req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, n)
	}
	ts.asked = true
	return stream.Send(req)
}

// handle applies one response and answers it.
func (c *Client) handle(ctx context.Context, stream discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, resp *discovery.DeltaDiscoveryResponse) {
	answer := &discovery.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
	c.mu.Lock()
	ts := c.types[resp.GetTypeUrl()]
	c.mu.Unlock()
	if ts != nil {
		rejects := c.judge(ctx, ts, resp)
		if len(rejects) > 0 {
			text := rejectText(rejects)
			answer.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: text}
			c.event(Event{Kind: EventRejected, URL: ts.URL, Err: errors.New(text)})
		}
	} else {
		c.event(Event{Kind: EventRejected, URL: resp.GetTypeUrl(), Err: errors.New("no handler for this type; answered as accepted")})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// The stream's end reports a failed send.
	_ = stream.Send(answer)
	if ts != nil && answer.GetErrorDetail() == nil && !ts.acked {
		ts.acked = true
		c.checkSynced()
	}
}

// judge calls the handler and remembers what it accepted.
func (c *Client) judge(ctx context.Context, ts *typeState, resp *discovery.DeltaDiscoveryResponse) []Reject {
	var rejects []Reject
	updated := make([]Resource, 0, len(resp.GetResources()))
	for _, r := range resp.GetResources() {
		if r.GetResource() == nil {
			rejects = append(rejects, Reject{Name: r.GetName(), Err: errors.New("the resource has no body")})
			continue
		}
		updated = append(updated, Resource{Name: r.GetName(), Version: r.GetVersion(), Body: r.GetResource()})
	}
	rejects = append(rejects, ts.Handle(ctx, updated, resp.GetRemovedResources())...)
	bad := make(map[string]struct{}, len(rejects))
	for _, r := range rejects {
		bad[r.Name] = struct{}{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range updated {
		_, refused := bad[r.Name]
		_, wanted := ts.names[r.Name]
		if !refused && (ts.wildcard || wanted) {
			ts.versions[r.Name] = r.Version
		}
	}
	for _, n := range resp.GetRemovedResources() {
		delete(ts.versions, n)
	}
	return rejects
}

// checkSynced closes the synced channel once all wildcard types are in; c.mu is held.
func (c *Client) checkSynced() {
	for _, ts := range c.types {
		if ts.wildcard && !ts.acked {
			return
		}
	}
	select {
	case <-c.synced:
	default:
		close(c.synced)
	}
}
