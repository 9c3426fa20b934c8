package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/manifests"
	"github.com/marrowmesh/marrow/marrow/internal/shopapp"
)

const (
	shop      = "shop"
	redirect  = "ambient.istio.io/redirection"
	startTime = 60 * time.Second
	// oldMarker is what the connection that was open before enrolment carries: it stays in clear text until it ends.
	oldMarker = "ledger-line"
	// outsiderMarker is the outsider's own.
	outsiderMarker = "outsider-text"
)

// world is the lab in the middle of the story.
type world struct {
	c        *lab.Client
	waypoint func(ctx context.Context, c *lab.Client) error
	nodes    []string
	old      *held           // opened in step a, before enrolment
	wire     *wiretap        // from step b to the end, for a look at each step
	tapes    []lab.Recording // the same, complete, for the last word
}

func newWorld(c *lab.Client, waypoint func(ctx context.Context, c *lab.Client) error) *world {
	return &world{c: c, waypoint: waypoint}
}

func (w *world) close() {
	if w.old != nil {
		w.old.end()
	}
	w.wire.stop()
}

// populate applies the shop and waits for its pods.
func (w *world) populate(ctx context.Context) error {
	info, err := w.c.Info(ctx)
	if err != nil {
		return err
	}
	w.nodes = info.Nodes
	files, err := fs.Glob(manifests.Samples(), "samples/shop/*.yaml")
	if err != nil {
		return err
	}
	var objects []manifest.Object
	for _, f := range files {
		text, err := fs.ReadFile(manifests.Samples(), f)
		if err != nil {
			return err
		}
		more, err := manifest.Decode(f, bytes.NewReader(text))
		if err != nil {
			return err
		}
		objects = append(objects, more...)
	}
	if _, err := w.c.ApplyObjects(ctx, objects...); err != nil {
		return err
	}
	return w.c.WaitReady(ctx, startTime)
}

// apply applies one of the demo's own files.
func (w *world) apply(ctx context.Context, name string) error {
	file := path.Join("samples/demo", name)
	text, err := fs.ReadFile(manifests.Samples(), file)
	if err != nil {
		return err
	}
	_, err = w.c.Apply(ctx, file, text)
	return err
}

// remove deletes what one of the demo's files holds.
func (w *world) remove(ctx context.Context, name string) error {
	file := path.Join("samples/demo", name)
	text, err := fs.ReadFile(manifests.Samples(), file)
	if err != nil {
		return err
	}
	objects, err := manifest.Decode(file, bytes.NewReader(text))
	if err != nil {
		return err
	}
	var refs []lab.Ref
	for _, o := range objects {
		refs = append(refs, lab.RefOf(manifest.KeyOf(o)))
	}
	_, err = w.c.Delete(ctx, true, refs...)
	return err
}

// traffic sends requests from a pod and counts the answers.
func (w *world) traffic(ctx context.Context, from lab.Target, url string, count int, flags ...string) (shopapp.Summary, error) {
	cmd := append([]string{"marrow", "app", "client", "--url", url, "--count", fmt.Sprint(count), "--timeout", "3s", "--json"}, flags...)
	out, err := w.c.Run(ctx, from, cmd...)
	if err != nil {
		return shopapp.Summary{}, err
	}
	var s shopapp.Summary
	if err := json.Unmarshal(out.Stdout, &s); err != nil {
		return s, fmt.Errorf("%s: status %d, %s", strings.Join(cmd, " "), out.Exit, bytes.TrimSpace(append(out.Stdout, out.Stderr...)))
	}
	return s, nil
}

func load() lab.Target     { return lab.Target{Namespace: shop, Name: "load"} }
func web() lab.Target      { return lab.Target{Namespace: shop, Name: "web"} }
func outsider() lab.Target { return lab.Target{Namespace: "outside", Name: "outsider"} }

// ztunnel is the lab's component on a node.
func ztunnel(node string) lab.Target {
	return lab.Target{Namespace: "istio-system", Name: "ztunnel-" + node}
}

// logged returns the first log line of the nodes' ztunnels that holds all words.
func (w *world) logged(ctx context.Context, words ...string) (string, bool, error) {
	var found string
	_, ok, err := until(ctx, 3*time.Second, func() (bool, error) {
		for _, n := range w.nodes {
			var log bytes.Buffer
			if err := w.c.Logs(ctx, &log, ztunnel(n), false, 2000); err != nil {
				return false, err
			}
			for line := range strings.Lines(log.String()) {
				if containsAll(line, words) {
					found = strings.TrimSpace(line)
					return true, nil
				}
			}
		}
		return false, nil
	})
	return found, ok, err
}

func containsAll(s string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}

// enrolled reports how many pods of the shop there are and how many are redirected.
func (w *world) enrolled(ctx context.Context) (in, all int, err error) {
	pods, err := lab.Get[*corev1.Pod](ctx, w.c, shop, "")
	for _, p := range pods {
		all++
		if p.Annotations[redirect] == "enabled" {
			in++
		}
	}
	return in, all, err
}

// held is a long-lived connection that somebody drives in the background.
type held struct {
	cancel context.CancelFunc
	done   chan struct{}
	report shopapp.HoldReport
	err    error
	ended  time.Time
}

// hold opens a connection from the load client to the ledger and keeps sending
// lines, for at most a minute and a half.
func (w *world) hold(ctx context.Context) *held {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	h := &held{cancel: cancel, done: make(chan struct{})}
	go func() { // ends with the command or end()
		defer close(h.done)
		var out lab.Output
		out, h.err = w.c.Run(ctx, load(), "marrow", "app", "client", "--tcp", "ledger:9090", "--hold", "--marker", oldMarker, "--duration", "90s", "--json")
		h.ended = time.Now()
		if h.err == nil {
			h.err = json.Unmarshal(out.Stdout, &h.report)
		}
	}()
	return h
}

// alive says whether the connection is still being driven. There is none when
// the step that should open it has failed.
func (h *held) alive() bool {
	if h == nil {
		return false
	}
	select {
	case <-h.done:
		return false
	default:
		return true
	}
}

func (h *held) end() {
	if h == nil {
		return
	}
	h.cancel()
	<-h.done
}

// evidence prints the last words of the components after a failure.
func (w *world) evidence(ctx context.Context, tell io.Writer) {
	for _, name := range []string{"istiod-lite", "cni-node-1", "cni-node-2", "ztunnel-node-1", "ztunnel-node-2"} {
		say(tell, "\n--- the end of %s's log\n", name)
		if err := w.c.Logs(ctx, tell, lab.Target{Namespace: "istio-system", Name: name}, false, 25); err != nil {
			say(tell, "%v\n", err)
		}
	}
	pods, err := lab.Get[*corev1.Pod](ctx, w.c, shop, "")
	if err != nil {
		return
	}
	for _, p := range pods {
		say(tell, "%s %s %s redirection=%s\n", p.Name, p.Status.Phase, p.Status.PodIP, p.Annotations[redirect])
		if strings.Contains(p.Name, "waypoint") {
			if err := w.c.Logs(ctx, tell, lab.Target{Namespace: shop, Name: p.Name}, false, 25); err != nil {
				say(tell, "%v\n", err)
			}
		}
	}
}
