package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/marrowmesh/marrow/internal/manifest"
)

// Client speaks to a running lab. It is safe for concurrent use.
type Client struct {
	State State
	http  *http.Client
}

// NewClient is a client of the lab with that state directory.
func NewClient(s State) *Client {
	return &Client{State: s, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", s.Socket())
		},
		DisableCompression: true,
	}}}
}

// Connect finds a running lab. An empty name means the only one running; an
// empty root means DefaultRoot().
func Connect(ctx context.Context, root, name string) (*Client, error) {
	if root == "" {
		root = DefaultRoot()
	}
	if name == "" {
		labs, err := List(root)
		if err != nil {
			return nil, err
		}
		var running []string
		for _, l := range labs {
			if l.Running {
				running = append(running, l.Name)
			}
		}
		switch len(running) {
		case 0:
			return nil, fmt.Errorf("%w (looked in %s)", ErrNoLab, root)
		case 1:
			name = running[0]
		default:
			return nil, fmt.Errorf("several labs are running (%s); choose one with --lab", strings.Join(running, ", "))
		}
	}
	c := NewClient(StateOf(root, name))
	if _, err := c.Info(ctx); err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("lab %q: %w", name, ErrNoLab)
		}
		return nil, err
	}
	return c, nil
}

// Close releases idle connections. The lab runs on.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) call(ctx context.Context, method, path string, query url.Values, body, out any) error {
	var in io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		in = bytes.NewReader(b)
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
		in = bytes.NewReader(raw)
	}
	resp, err := c.stream(ctx, method, path, query, in)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Close() }()
	if out == nil {
		_, err = io.Copy(io.Discard, resp)
		return err
	}
	if raw, ok := out.(*[]byte); ok {
		*raw, err = io.ReadAll(resp)
		return err
	}
	if err := json.NewDecoder(resp).Decode(out); err != nil {
		return fmt.Errorf("decode the lab's answer to %s: %w", path, err)
	}
	return nil
}

func (c *Client) stream(ctx context.Context, method, path string, query url.Values, in io.Reader) (io.ReadCloser, error) {
	u := url.URL{Scheme: "http", Host: "lab", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), in)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the lab: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer func() { _ = resp.Body.Close() }()
	return nil, readAPIError(resp)
}

func readAPIError(resp *http.Response) error {
	e := &APIError{Status: resp.StatusCode}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil || json.Unmarshal(raw, e) != nil {
		e.Message = strings.TrimSpace(string(raw))
	}
	return e
}

// Info describes the lab.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var i Info
	err := c.call(ctx, http.MethodGet, "/v1/info", nil, nil, &i)
	return i, err
}

// Apply creates or updates the objects of Kubernetes manifests. source names
// the text in errors. When any object is refused, nothing is changed.
func (c *Client) Apply(ctx context.Context, source string, yaml []byte) ([]Change, error) {
	objects, err := manifest.Decode(source, bytes.NewReader(yaml))
	if err != nil {
		return nil, err
	}
	return c.ApplyObjects(ctx, objects...)
}

// ApplyFiles applies files, directories and "-" (standard input).
func (c *Client) ApplyFiles(ctx context.Context, paths ...string) ([]Change, error) {
	objects, err := ReadManifests(os.Stdin, paths...)
	if err != nil {
		return nil, err
	}
	return c.ApplyObjects(ctx, objects...)
}

// ApplyObjects creates or updates objects, all or none.
func (c *Client) ApplyObjects(ctx context.Context, objects ...manifest.Object) ([]Change, error) {
	raw, err := EncodeAll(objects)
	if err != nil {
		return nil, err
	}
	var out []Change
	err = c.call(ctx, http.MethodPost, "/v1/apply", nil, raw, &out)
	return out, err
}

// Delete deletes objects; with wait it returns when their pods have ended.
func (c *Client) Delete(ctx context.Context, wait bool, refs ...Ref) ([]Change, error) {
	var out []Change
	err := c.call(ctx, http.MethodPost, "/v1/delete", nil, DeleteRequest{Refs: refs, Wait: wait}, &out)
	return out, err
}

// Label sets and removes labels of one object.
func (c *Client) Label(ctx context.Context, r LabelRequest) (Change, error) {
	var out Change
	err := c.call(ctx, http.MethodPost, "/v1/label", nil, r, &out)
	return out, err
}

// Get lists objects of a kind. An empty namespace means all, an empty name
// means every one; a name that is not there is an error.
func (c *Client) Get(ctx context.Context, k Kind, namespace, name string) ([]manifest.Object, error) {
	q := url.Values{"group": {k.Group}, "kind": {k.Kind}, "namespace": {namespace}, "name": {name}}
	var raw []byte
	if err := c.call(ctx, http.MethodGet, "/v1/objects", q, nil, &raw); err != nil {
		return nil, err
	}
	return manifest.Decode("the lab", bytes.NewReader(raw))
}

// Get lists objects by Go type: Get[*corev1.Pod](ctx, c, "shop", "").
func Get[T manifest.Object](ctx context.Context, c *Client, namespace, name string) ([]T, error) {
	// KeyOf reads the object's name, so it needs one that is there.
	blank, ok := reflect.TypeAssert[T](reflect.New(reflect.TypeFor[T]().Elem()))
	if !ok {
		return nil, fmt.Errorf("%v is no pointer to an object", reflect.TypeFor[T]())
	}
	key := manifest.KeyOf(blank)
	objects, err := c.Get(ctx, Kind{Group: key.Group, Kind: key.Kind}, namespace, name)
	if err != nil {
		return nil, err
	}
	out := make([]T, 0, len(objects))
	for _, o := range objects {
		if t, ok := o.(T); ok {
			out = append(out, t)
		}
	}
	return out, nil
}

// Logs copies a container's log to w; with follow it goes on until ctx ends.
// tail > 0 begins with that many last lines.
func (c *Client) Logs(ctx context.Context, w io.Writer, t Target, follow bool, tail int) error {
	q := url.Values{"target": {t.String()}, "container": {t.Container}, "follow": {strconv.FormatBool(follow)}, "tail": {strconv.Itoa(tail)}}
	return c.copy(ctx, w, "/v1/logs", q)
}

// Capture writes what passes an interface of a pod or node to w, as pcap,
// until ctx ends. An empty iface means the pod's or node's uplink; "any" means
// all interfaces of a node.
func (c *Client) Capture(ctx context.Context, w io.Writer, t Target, iface string) error {
	return c.copy(ctx, w, "/v1/capture", url.Values{"target": {t.String()}, "iface": {iface}})
}

// Record starts a capture into a file. When it returns, every later packet is
// recorded; StopRecording ends it, and then the file is complete, which a
// stream that its reader breaks off can never be.
func (c *Client) Record(ctx context.Context, t Target, iface string) (Recording, error) {
	var out Recording
	err := c.call(ctx, http.MethodPost, "/v1/recordings", nil, CaptureRequest{Target: t, Interface: iface}, &out)
	return out, err
}

// StopRecording ends a recording. Its file stays until the lab goes down.
func (c *Client) StopRecording(ctx context.Context, id string) (Recording, error) {
	var out Recording
	err := c.call(ctx, http.MethodDelete, "/v1/recordings", url.Values{"id": {id}}, nil, &out)
	return out, err
}

func (c *Client) copy(ctx context.Context, w io.Writer, path string, q url.Values) error {
	body, err := c.stream(ctx, http.MethodGet, path, q, nil)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	if _, err := io.Copy(w, body); err != nil && ctx.Err() == nil {
		return fmt.Errorf("read from the lab: %w", err)
	}
	return nil
}

// Kill sends a signal to a pod's processes: Kill(ctx, {Name: "ztunnel-node-1"},
// syscall.SIGKILL). The lab restarts what its restartPolicy says.
func (c *Client) Kill(ctx context.Context, t Target, sig syscall.Signal) (KillResult, error) {
	var out KillResult
	err := c.call(ctx, http.MethodPost, "/v1/kill", nil, KillRequest{Target: t, Signal: int(sig)}, &out)
	return out, err
}

// WaitReady waits until every pod is ready (or has succeeded), every
// Deployment has its replicas, and nothing is in between. The error names who
// is not.
func (c *Client) WaitReady(ctx context.Context, limit time.Duration) error {
	var out WaitResult
	q := url.Values{"timeout": {limit.String()}}
	if err := c.call(ctx, http.MethodGet, "/v1/wait", q, nil, &out); err != nil {
		return err
	}
	if !out.Ready {
		return fmt.Errorf("not ready within %v: %s", limit, strings.Join(out.Pending, "; "))
	}
	return nil
}

// Shutdown tells the lab to end its pods and itself. It returns when the lab
// has begun to.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, "/v1/shutdown", nil, nil, nil)
}

// Progress follows the lab's story from its start until the start is over.
func (c *Client) Progress(ctx context.Context, each func(Progress)) error {
	body, err := c.stream(ctx, http.MethodGet, "/v1/progress", nil, nil)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	dec := json.NewDecoder(body)
	for {
		var p Progress
		if err := dec.Decode(&p); err != nil {
			if errors.Is(err, io.EOF) {
				return errors.New("the lab ended before it was up; see its log")
			}
			return fmt.Errorf("follow the lab's start: %w", err)
		}
		if each != nil {
			each(p)
		}
		if p.Final {
			if p.Error != "" {
				return errors.New(p.Error)
			}
			return nil
		}
	}
}
