package pods

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/marrowmesh/marrow/cni/internal/redirect"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/zds"
)

// view is what a step works with: a copy that does not change under it.
type view struct {
	uid  string
	pod  Pod
	gone bool
	path string
	note string
	why  string
	old  bool
}

func (v view) info() zds.Info {
	return zds.Info{Name: v.pod.Name, Namespace: v.pod.Namespace, ServiceAccount: v.pod.ServiceAccount}
}

// enrol goes from wherever the pod is to served.
func (m *Manager) enrol(ctx context.Context, e *entry, v view) error {
	if v.path == "" || len(v.pod.IPs) == 0 {
		return fmt.Errorf("pod %v has no address or no known network namespace yet: %w", v.pod, errWait)
	}
	if err := m.redirect(e, v); err != nil {
		return err
	}
	if e.stage != served {
		if err := m.handOver(ctx, e, v); err != nil {
			return err
		}
	}
	if err := m.probesFor(v.uid, v.pod.IPs); err != nil {
		return err
	}
	return m.annotate(ctx, e, v, StateEnabled)
}

// redirect opens the namespace, checks it and brings the rules into force,
// as far as that is not done.
func (m *Manager) redirect(e *entry, v view) error {
	ns := e.ns
	if ns == nil || e.opened != v.path {
		opened, err := m.cfg.Open(v.path)
		if err != nil {
			return fmt.Errorf("pod %v: %w", v.pod, err)
		}
		ns = opened
	}
	rules, err := m.apply(ns, e, v)
	if err != nil {
		if ns != e.ns {
			_ = ns.Close()
		}
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if ns != e.ns {
		if e.ns != nil {
			_ = e.ns.Close()
		}
		e.ns, e.opened, e.stage = ns, v.path, redirected
	}
	e.rules = rules
	return nil
}

func (m *Manager) apply(ns Namespace, e *entry, v view) (rules string, err error) {
	if err := belongs(ns, v.pod); err != nil {
		return "", err
	}
	options := m.cfg.Redirect.For(v.pod.Annotations)
	if m.cfg.Loopback6 != nil {
		options.Loopback6 = options.Loopback6 && m.cfg.Loopback6(ns)
	}
	set := redirect.Pod(options)
	if rules = set.String(); ns == e.ns && rules == e.rules {
		return rules, nil
	}
	if err := ns.Apply(set); err != nil {
		return "", fmt.Errorf("pod %v: %w", v.pod, err)
	}
	return rules, nil
}

// belongs refuses a namespace that does not hold the pod's addresses: a path
// may lead elsewhere by now.
func belongs(ns Namespace, p Pod) error {
	have, err := ns.Addrs()
	if err != nil {
		return fmt.Errorf("pod %v: %w", p, err)
	}
	for _, ip := range p.IPs {
		if !slices.Contains(have, ip.Unmap()) {
			return fmt.Errorf("pod %v has the address %v, but the network namespace given for it has %v: it is not the pod's", p, ip, have)
		}
	}
	return nil
}

func (m *Manager) handOver(ctx context.Context, e *entry, v view) error {
	fd, err := e.ns.DupFD()
	if err != nil {
		return fmt.Errorf("pod %v: %w", v.pod, err)
	}
	defer m.cfg.CloseFD(fd)
	limited, cancel := context.WithTimeout(ctx, proxyLimit)
	defer cancel()
	err = m.cfg.Proxy.Add(limited, v.uid, v.info(), fd)
	if errors.Is(err, zds.ErrNoProxy) && v.note == StateEnabled {
		// Enrolled before we started: the proxy has it, or gets it by the
		// snapshot when it comes.
		err = nil
	}
	if err != nil {
		return errors.Join(err, m.annotate(ctx, e, v, StatePending))
	}
	m.mu.Lock()
	e.stage = served
	m.mu.Unlock()
	m.cfg.Log.Info("pod enrolled", obs.F("pod", v.pod.String()), obs.F("uid", v.uid), obs.F("why", v.why))
	return nil
}

// remove goes from wherever the pod is to outside.
func (m *Manager) remove(ctx context.Context, e *entry, v view) error {
	if e.stage == outside && v.note == "" {
		m.clean(e, v)
		return nil
	}
	if err := m.probesFor(v.uid, nil); err != nil {
		return err
	}
	if !v.gone && !v.pod.Ended {
		if err := m.unredirect(e, v); err != nil {
			return err
		}
	}
	m.mu.Lock()
	ns := e.ns
	was := e.stage
	e.ns, e.opened, e.rules, e.stage, e.given = nil, "", "", outside, ""
	m.mu.Unlock()
	if ns != nil {
		_ = ns.Close()
	}
	limited, cancel := context.WithTimeout(ctx, proxyLimit)
	defer cancel()
	if err := m.cfg.Proxy.Del(limited, v.uid); err != nil {
		m.cfg.Log.Warn("the proxy did not take note of a removed pod", obs.F("pod", v.pod.String()), obs.F("uid", v.uid), obs.Err(err))
	}
	if was != outside {
		m.cfg.Log.Info("pod removed", obs.F("pod", v.pod.String()), obs.F("uid", v.uid), obs.F("why", v.why))
	}
	if v.gone {
		return nil
	}
	return m.annotate(ctx, e, v, "")
}

// clean takes out what an agent that was killed half-way through an
// enrolment may have left in a pod that is not wanted any more. There is no
// trace of such a pod but the rules themselves.
func (m *Manager) clean(e *entry, v view) {
	if !v.old || v.gone || v.pod.Ended || v.pod.HostNetwork || v.path == "" || len(v.pod.IPs) == 0 {
		return
	}
	if err := m.unredirect(e, v); err != nil {
		m.cfg.Log.Debug("a pod could not be looked into for old rules", obs.F("pod", v.pod.String()), obs.Err(err))
	}
}

// unredirect takes the rules out of a living pod.
func (m *Manager) unredirect(e *entry, v view) error {
	ns := e.ns
	if ns == nil {
		if v.path == "" {
			return nil
		}
		opened, err := m.cfg.Open(v.path)
		if err != nil {
			return fmt.Errorf("pod %v: %w", v.pod, err)
		}
		defer func() { _ = opened.Close() }()
		if err := belongs(opened, v.pod); err != nil {
			return err
		}
		ns = opened
	}
	if err := ns.Undo(redirect.Everything()); err != nil {
		return fmt.Errorf("pod %v: %w", v.pod, err)
	}
	return nil
}

func (m *Manager) annotate(ctx context.Context, e *entry, v view, state string) error {
	if v.note == state {
		return nil
	}
	if err := m.cfg.Source.Annotate(ctx, v.pod, state); err != nil {
		return fmt.Errorf("annotate pod %v with %s=%q: %w", v.pod, AnnotationRedirection, state, err)
	}
	m.mu.Lock()
	e.note = state
	m.mu.Unlock()
	return nil
}
