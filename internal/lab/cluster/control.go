package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/lab/kubelet"
	"github.com/marrowmesh/marrow/internal/lab/plan"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/internal/run"
)

// maxBody bounds a request: a large set of manifests is below it.
const maxBody = 64 << 20

// listen serves the control socket until the group ends.
func (c *cluster) listen(g *run.Group) error {
	var lc net.ListenConfig
	l, err := lc.Listen(g.Context(), "unix", c.state.Socket())
	if err != nil {
		return fmt.Errorf("listen on the control socket: %w", err)
	}
	srv := &http.Server{
		Handler: c.routes(), ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return g.Context() },
	}
	g.Go("control", func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
		defer stop()
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	return nil
}

// status is an error with the status to answer.
type status struct {
	code int
	err  error
}

func (s *status) Error() string { return s.err.Error() }
func (s *status) Unwrap() error { return s.err }

func bad(err error) error { return &status{code: http.StatusUnprocessableEntity, err: err} }

func notFound(err error) error { return &status{code: http.StatusNotFound, err: err} }

// routes maps paths to handlers; errors are answered at this one edge.
func (c *cluster) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h func(w http.ResponseWriter, r *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := h(w, r); err != nil {
				answerError(w, err)
			}
		})
	}
	handle("GET /v1/info", func(w http.ResponseWriter, _ *http.Request) error { return answer(w, c.info) })
	handle("GET /v1/objects", c.getObjects)
	handle("POST /v1/apply", c.postApply)
	handle("POST /v1/delete", c.postDelete)
	handle("POST /v1/label", c.postLabel)
	handle("POST /v1/kill", c.postKill)
	handle("POST /v1/exec", c.postExec)
	handle("POST /v1/forward", c.postForward)
	handle("GET /v1/logs", c.getLogs)
	handle("GET /v1/capture", c.getCapture)
	handle("POST /v1/recordings", c.postRecording)
	handle("DELETE /v1/recordings", c.deleteRecording)
	handle("GET /v1/wait", c.getWait)
	handle("GET /v1/progress", c.getProgress)
	handle("POST /v1/shutdown", func(w http.ResponseWriter, _ *http.Request) error {
		c.stop()
		return answer(w, struct{}{})
	})
	return mux
}

func answer(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // a client that left needs no answer
	return nil
}

func answerError(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	if s, ok := errors.AsType[*status](err); ok {
		code = s.code
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(lab.APIError{Status: code, Message: err.Error()})
}

func decode(r *http.Request, into any) error {
	dec := json.NewDecoder(io.LimitReader(r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return &status{code: http.StatusBadRequest, err: fmt.Errorf("decode the request: %w", err)}
	}
	return nil
}

func (c *cluster) getObjects(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	var out []manifest.Object
	for _, o := range c.world.list() {
		k := manifest.KeyOf(o)
		if (q.Get("kind") == "" || (k.Kind == q.Get("kind") && k.Group == q.Get("group"))) &&
			(q.Get("namespace") == "" || k.Namespace == q.Get("namespace")) && (q.Get("name") == "" || k.Name == q.Get("name")) {
			out = append(out, o)
		}
	}
	if len(out) == 0 && q.Get("name") != "" {
		ref := lab.Ref{Group: q.Get("group"), Kind: q.Get("kind"), Namespace: q.Get("namespace"), Name: q.Get("name")}
		return notFound(fmt.Errorf("%s does not exist", ref))
	}
	raw, err := lab.EncodeAll(out)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(raw) // a client that left needs no answer
	return nil
}

func (c *cluster) postApply(w http.ResponseWriter, r *http.Request) error {
	objects, err := manifest.Decode("request", io.LimitReader(r.Body, maxBody))
	if err != nil {
		return bad(err)
	}
	changes, err := c.applier.apply(objects)
	if err != nil {
		return bad(err)
	}
	return answer(w, changes)
}

func (c *cluster) postDelete(w http.ResponseWriter, r *http.Request) error {
	var req lab.DeleteRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	// Deployments' pods are known by name only while the Deployment is there.
	before := c.world.snapshot()
	changes, err := c.applier.remove(req.Refs)
	if err != nil {
		return bad(err)
	}
	if req.Wait {
		c.waitFor(r.Context(), func() []string { return c.remains(before, req.Refs) })
	}
	return answer(w, changes)
}

// remains lists what is left of deleted objects, and of the pods whose
// Deployment went with them, as a waypoint's does with its Gateway.
func (c *cluster) remains(before snapshot, refs []lab.Ref) []string {
	var out []string
	for _, ref := range refs {
		if _, ok := c.world.get(ref.Key()); ok {
			out = append(out, ref.String())
		}
	}
	now := c.world.snapshot()
	had := plan.Orphans(before.deployments, before.pods)
	for _, p := range before.pods {
		_, owned := plan.OwnerDeployment(p)
		if !owned || slices.Contains(had, p) {
			continue
		}
		o, ok := c.world.get(manifest.KeyOf(p))
		if !ok || o.GetUID() != p.UID {
			continue
		}
		if !slices.ContainsFunc(now.deployments, func(d *appsv1.Deployment) bool { return plan.Owns(d, p) }) {
			out = append(out, p.Namespace+"/"+p.Name)
		}
	}
	return out
}

func (c *cluster) postLabel(w http.ResponseWriter, r *http.Request) error {
	var req lab.LabelRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	change, err := c.applier.label(req)
	if err != nil {
		return bad(err)
	}
	return answer(w, change)
}

func (c *cluster) postKill(w http.ResponseWriter, r *http.Request) error {
	var req lab.KillRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	p, err := c.pod(req.Target)
	if err != nil {
		return err
	}
	names, pids, err := c.kubelet.Kill(p, req.Target.Container, syscall.Signal(req.Signal))
	if err != nil {
		return bad(err)
	}
	return answer(w, lab.KillResult{Pod: p.Namespace + "/" + p.Name, Containers: names, PIDs: pids})
}

func parseTarget(r *http.Request) lab.Target {
	t := lab.ParseTarget(r.URL.Query().Get("target"))
	t.Container = r.URL.Query().Get("container")
	return t
}

func (c *cluster) getLogs(w http.ResponseWriter, r *http.Request) error {
	t := parseTarget(r)
	q := r.URL.Query()
	follow := q.Get("follow") == "true"
	tail, _ := strconv.Atoi(q.Get("tail")) // nothing or nonsense means all
	path := c.state.Log()
	if t.Name != "lab" || t.Namespace != "" {
		p, err := c.pod(t)
		if err != nil {
			return err
		}
		name := t.Container
		if name == "" {
			name = p.Spec.Containers[0].Name
		}
		if !hasContainer(p, name) {
			return notFound(fmt.Errorf("pod %s/%s has no container %q", p.Namespace, p.Name, name))
		}
		path = kubelet.LogPath(c.state, p.Namespace, p.Name, name)
	}
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush() // the client shall not wait for the first line
	if err := kubelet.CopyLog(r.Context(), flusher{w}, path, follow, tail); err != nil && r.Context().Err() == nil {
		return err
	}
	return nil
}

func hasContainer(p *corev1.Pod, name string) bool {
	for _, list := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for _, c := range list {
			if c.Name == name {
				return true
			}
		}
	}
	return false
}

// flusher sends every write at once.
type flusher struct{ w http.ResponseWriter }

func (f flusher) Write(b []byte) (int, error) {
	n, err := f.w.Write(b)
	if err != nil {
		return n, err
	}
	return n, http.NewResponseController(f.w).Flush()
}

func (c *cluster) getWait(w http.ResponseWriter, r *http.Request) error {
	limit, err := time.ParseDuration(r.URL.Query().Get("timeout"))
	if err != nil || limit <= 0 {
		limit = time.Minute
	}
	ctx, cancel := context.WithTimeout(r.Context(), limit)
	defer cancel()
	pending := c.waitFor(ctx, c.pending)
	return answer(w, lab.WaitResult{Ready: len(pending) == 0, Pods: len(c.world.snapshot().pods), Pending: pending})
}

// pending lists what is not as its object asks: pods that are not ready,
// Deployments short of replicas, Services without their addresses.
func (c *cluster) pending() []string {
	s := c.world.snapshot()
	var out []string
	for _, p := range s.pods {
		if p.DeletionTimestamp != nil || (!plan.IsReady(p) && p.Status.Phase != corev1.PodSucceeded) {
			text := c.why(p)
			if p.DeletionTimestamp != nil {
				text = "ending"
			}
			out = append(out, p.Namespace+"/"+p.Name+": "+text)
			continue
		}
		if name, n := justRestarted(p, time.Now()); n > 0 {
			out = append(out, fmt.Sprintf("%s/%s: %s was restarted %d times, last a moment ago", p.Namespace, p.Name, name, n))
		}
	}
	for _, d := range s.deployments {
		if !settled(d) {
			out = append(out, fmt.Sprintf("deployment %s/%s: %d of %d replicas are ready", d.Namespace, d.Name, d.Status.ReadyReplicas, plan.Replicas(d)))
		}
	}
	for _, svc := range s.services {
		if !plan.Allocated(svc) {
			out = append(out, fmt.Sprintf("service %s/%s has no address", svc.Namespace, svc.Name))
		}
	}
	return out
}

// justRestarted finds a container that counts as ready only because no probe
// asks it, and that may end again at once, as it did before.
func justRestarted(p *corev1.Pod, now time.Time) (name string, restarts int32) {
	const proven = 2 * time.Second // times in a status are whole seconds
	for _, c := range p.Spec.Containers {
		for _, s := range p.Status.ContainerStatuses {
			if s.Name == c.Name && c.ReadinessProbe == nil && c.StartupProbe == nil && s.RestartCount > 0 &&
				s.State.Running != nil && now.Sub(s.State.Running.StartedAt.Time) < proven {
				return c.Name, s.RestartCount
			}
		}
	}
	return "", 0
}

func settled(d *appsv1.Deployment) bool {
	want := int32(plan.Replicas(d))
	st := d.Status
	return st.ObservedGeneration == d.Generation && st.ReadyReplicas == want && st.UpdatedReplicas == want && st.Replicas == want
}

func (c *cluster) getProgress(w http.ResponseWriter, r *http.Request) error {
	w.WriteHeader(http.StatusOK)
	enc := json.NewEncoder(flusher{w})
	for n := 0; ; {
		lines, more := c.story.after(n)
		for _, p := range lines {
			if enc.Encode(p) != nil || p.Final {
				return nil //nolint:nilerr // the client has left
			}
		}
		n += len(lines)
		select {
		case <-r.Context().Done():
			return nil
		case <-more:
		}
	}
}

// pod resolves a target: a pod's name, the name of a Deployment for one of its
// ready pods, or the value of its label app.
func (c *cluster) pod(t lab.Target) (*corev1.Pod, error) {
	var exact, related []*corev1.Pod
	for _, p := range c.world.snapshot().pods {
		if t.Namespace != "" && p.Namespace != t.Namespace {
			continue
		}
		owner, _ := plan.OwnerDeployment(p)
		switch {
		case p.Name == t.Name:
			exact = append(exact, p)
		case p.DeletionTimestamp == nil && (owner == t.Name || p.Labels["app"] == t.Name):
			related = append(related, p)
		}
	}
	if len(exact) == 1 {
		return exact[0], nil
	}
	if len(exact) > 1 {
		return nil, bad(fmt.Errorf("pod %q exists in several namespaces; name one with -n", t.Name))
	}
	for _, p := range related {
		if plan.IsReady(p) {
			return p, nil
		}
	}
	if len(related) > 0 {
		return related[0], nil
	}
	var known []string
	for _, p := range c.world.snapshot().pods {
		known = append(known, p.Namespace+"/"+p.Name)
	}
	return nil, notFound(fmt.Errorf("no pod %q; there are %s", t, strings.Join(known, ", ")))
}

// file turns a received descriptor into a file in blocking mode, as programs
// expect their standard streams.
func file(fd int, name string) *os.File {
	_ = syscall.SetNonblock(fd, false) // at worst the program sees EAGAIN
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}
