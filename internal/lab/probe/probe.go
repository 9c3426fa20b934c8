package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Target is what a probe is sent to.
type Target struct {
	// IP is the pod's address.
	IP netip.Addr
	// Dial connects from the pod's node.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Exec runs a command in the container and answers with its exit code and
	// the first lines of its output.
	Exec func(ctx context.Context, argv []string) (code int, output string, err error)
	// Ports are the container's named ports.
	Ports map[string]int32
}

// Check sends the probe once. The answer is nil if the container is well.
func Check(ctx context.Context, p *corev1.Probe, t Target) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timing(p).timeout, fmt.Errorf("no answer within %v", timing(p).timeout))
	defer cancel()
	err := check(ctx, p, t)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

func check(ctx context.Context, p *corev1.Probe, t Target) error {
	switch {
	case p.HTTPGet != nil:
		return checkHTTP(ctx, p.HTTPGet, t)
	case p.TCPSocket != nil:
		return checkTCP(ctx, p.TCPSocket, t)
	case p.Exec != nil:
		return checkExec(ctx, p.Exec, t)
	case p.GRPC != nil:
		return checkGRPC(ctx, p.GRPC, t)
	default:
		return errors.New("the probe has no httpGet, tcpSocket, exec or grpc")
	}
}

// port resolves a number or a container port's name.
func (t Target) port(p intstr.IntOrString) (string, error) {
	n := p.IntVal
	if p.Type == intstr.String {
		named, ok := t.Ports[p.StrVal]
		if !ok {
			parsed, err := strconv.ParseInt(p.StrVal, 10, 32)
			if err != nil {
				return "", fmt.Errorf("port %q is no port of the container; name it under ports", p.StrVal)
			}
			named = int32(parsed)
		}
		n = named
	}
	if n < 1 || n > 65535 {
		return "", fmt.Errorf("port %d is not between 1 and 65535", n)
	}
	return strconv.Itoa(int(n)), nil
}

func (t Target) host(override string) string {
	if override != "" {
		return override
	}
	return t.IP.String()
}

func checkTCP(ctx context.Context, a *corev1.TCPSocketAction, t Target) error {
	port, err := t.port(a.Port)
	if err != nil {
		return err
	}
	c, err := t.Dial(ctx, "tcp", net.JoinHostPort(t.host(a.Host), port))
	if err != nil {
		return err
	}
	return c.Close()
}

func checkHTTP(ctx context.Context, a *corev1.HTTPGetAction, t Target) error {
	port, err := t.port(a.Port)
	if err != nil {
		return err
	}
	scheme := strings.ToLower(string(a.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	// A path may hold a query; what cannot be parsed is a path all the same.
	u, err := url.Parse(a.Path)
	if err != nil {
		u = &url.URL{Path: a.Path}
	}
	u.Scheme, u.Host = scheme, net.JoinHostPort(t.host(a.Host), port)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "kube-probe/lab")
	req.Header.Set("Accept", "*/*")
	for _, h := range a.HTTPHeaders {
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
			continue
		}
		req.Header.Set(h.Name, h.Value)
	}
	transport := &http.Transport{
		// The transport would go on dialling after the request's end, for the
		// next one, which does not come.
		DialContext: func(_ context.Context, network, address string) (net.Conn, error) {
			return t.Dial(ctx, network, address)
		},
		DisableKeepAlives: true,
		// A kubelet does not check the certificate of a container either.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // see above
	}
	client := &http.Client{Transport: transport, CheckRedirect: sameHost}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 10<<10))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 400 {
		return nil
	}
	return fmt.Errorf("status %d: %s", resp.StatusCode, strings.TrimSpace(string(body)))
}

// sameHost follows redirects on the same host only; one to elsewhere counts as
// well, as with a kubelet.
func sameHost(req *http.Request, via []*http.Request) error {
	if req.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= 10 {
		return errors.New("10 redirects")
	}
	return nil
}

func checkExec(ctx context.Context, a *corev1.ExecAction, t Target) error {
	code, output, err := t.Exec(ctx, a.Command)
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("command %q ended with status %d: %s", a.Command, code, strings.TrimSpace(output))
	}
	return nil
}

// times are a probe's durations with Kubernetes' defaults.
type times struct{ delay, period, timeout time.Duration }

func timing(p *corev1.Probe) times {
	seconds := func(n, def int32) time.Duration {
		if n <= 0 {
			n = def
		}
		return time.Duration(n) * time.Second
	}
	return times{
		delay:   time.Duration(max(p.InitialDelaySeconds, 0)) * time.Second,
		period:  seconds(p.PeriodSeconds, 10),
		timeout: seconds(p.TimeoutSeconds, 1),
	}
}

// Tracker counts answers against a probe's thresholds.
type Tracker struct {
	success, failure int // thresholds
	well             bool
	inRow            int // equal answers in a row, of lastOK
	lastOK           bool
	decided          bool
}

// NewTracker starts with the given outcome: false for readiness and startup,
// true for liveness.
func NewTracker(p *corev1.Probe, well bool) *Tracker {
	t := &Tracker{success: int(p.SuccessThreshold), failure: int(p.FailureThreshold), well: well}
	if t.success <= 0 {
		t.success = 1
	}
	if t.failure <= 0 {
		t.failure = 3
	}
	return t
}

// Add counts one answer. decided reports that a threshold is reached with this
// answer for the first time, or reached on the other side: the outcome is then
// new.
func (t *Tracker) Add(ok bool) (well, decided bool) {
	if ok != t.lastOK || t.inRow == 0 {
		t.inRow = 0
		t.lastOK = ok
	}
	t.inRow++
	threshold := t.failure
	if ok {
		threshold = t.success
	}
	if t.inRow < threshold || t.decided && t.well == ok {
		return t.well, false
	}
	t.well, t.decided = ok, true
	return t.well, true
}

// Result is one new outcome of a probe.
type Result struct {
	Well bool
	Err  error // the last answer, when not well
}

// Run probes until ctx ends. It calls report on each new outcome, and never
// concurrently.
func Run(ctx context.Context, p *corev1.Probe, t Target, report func(Result)) {
	run(ctx, p, func(ctx context.Context) error { return Check(ctx, p, t) }, report)
}

func run(ctx context.Context, p *corev1.Probe, check func(context.Context) error, report func(Result)) {
	tm := timing(p)
	timer := time.NewTimer(tm.delay)
	defer timer.Stop()
	tracker := NewTracker(p, false)
	next := time.Now().Add(tm.delay)
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := check(ctx)
		if ctx.Err() != nil {
			return // the answer says more about the end than about the container
		}
		if well, decided := tracker.Add(err == nil); decided {
			report(Result{Well: well, Err: err})
		}
		// The next one is due by the clock; those that a slow check missed
		// are left out.
		next = next.Add(tm.period)
		for now := time.Now(); !next.After(now); {
			next = next.Add(tm.period)
		}
		timer.Reset(time.Until(next))
	}
}
