package app

import (
	"context"

	"github.com/marrowmesh/marrow/internal/netsys"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/ztunnel/internal/capture"
	"github.com/marrowmesh/marrow/ztunnel/internal/config"
)

// own takes tunnels to ztunnel's own pod, so that a captured Prometheus can
// scrape the stats port through the mesh. Only ports that listen on the pod's
// address are reachable: never the admin pages, which are on loopback.
type own struct {
	cfg   *capture.Config
	pod   *capture.Pod // nil: the pod is not known, nothing is served
	log   *obs.Logger
	drain *run.Drain
	ended *run.Group
}

func newOwn(cfg *config.Config, shared *capture.Config, drain *run.Drain, log *obs.Logger) *own {
	o := &own{log: log.Named("own"), drain: drain, ended: run.NewGroup(context.Background())}
	n := &cfg.Node
	if n.PodName == "" || n.PodNamespace == "" || n.ServiceAccount == "" {
		return o
	}
	// Nothing is redirected here: neither marks nor foreign sources would do
	// any good.
	mine := *shared
	mine.Mark, mine.KeepSource = 0, false
	o.cfg = &mine
	o.pod = &capture.Pod{Name: n.PodName, Namespace: n.PodNamespace, ServiceAccount: n.ServiceAccount}
	return o
}

// serve opens the listener and returns. Without it metrics are still there in
// plaintext, so a failure is only told.
func (o *own) serve(ctx context.Context) error {
	if o.pod == nil {
		return nil
	}
	ns, err := netsys.CurrentNetns()
	if err != nil {
		return err
	}
	o.pod.Drain = o.drain.Child()
	proxy, err := capture.OpenHBONE(o.cfg, ns, o.pod)
	if err != nil {
		_ = ns.Close()
		o.pod.Drain.Detach()
		o.log.Warn("no tunnels to ztunnel's own pod", obs.Err(err))
		return nil
	}
	end := func(context.Context) error {
		err := proxy.Wait()
		o.pod.Drain.Detach()
		_ = ns.Close()
		return err
	}
	if !o.ended.Go("own tunnels", end) {
		o.pod.Drain.Cut()
		return end(ctx)
	}
	return nil
}

// wait returns when the last tunnel has ended; start the drain before.
func (o *own) wait() {
	if err := o.ended.Wait(); err != nil {
		o.log.Warn("tunnels to ztunnel's own pod broke", obs.Err(err))
	}
}
