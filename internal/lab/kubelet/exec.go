package kubelet

import (
	"fmt"
	"os"
	"slices"
	"syscall"

	corev1 "k8s.io/api/core/v1"

	"github.com/marrowmesh/marrow/internal/lab/fabric"
	"github.com/marrowmesh/marrow/internal/lab/proc"
)

// Exec starts a command in a container of the pod, with the given streams.
func (k *Kubelet) Exec(p *corev1.Pod, container string, argv, env []string, in, out, errs *os.File) (*proc.Process, error) {
	c, err := k.container(p, container)
	if err != nil {
		return nil, err
	}
	process := c.process()
	if process == nil {
		return nil, fmt.Errorf("pod %s/%s: container %s has not started yet", p.Namespace, p.Name, c.spec.Name)
	}
	return process.Exec(argv, env, in, out, errs)
}

// ExecIn starts a command in a network namespace of the fabric, such as a
// node's.
func (k *Kubelet) ExecIn(ns *fabric.Netns, argv, env []string, in, out, errs *os.File) (*proc.Process, error) {
	return proc.Start(proc.Spec{
		Name: ns.Name() + " exec", Netns: ns, Argv: argv,
		Env:        append([]string{"PATH=" + k.cfg.Path, "HOME=/root", "LANG=C.UTF-8"}, env...),
		ResolvConf: fmt.Appendf(nil, "search svc.cluster.local cluster.local\nnameserver %s\n", fabric.DNS4()),
		ShareProc:  true, Stdin: in, Stdout: out, Stderr: errs,
	})
}

// Kill sends a signal to the main processes of a pod, or of one container.
func (k *Kubelet) Kill(p *corev1.Pod, container string, sig syscall.Signal) (names []string, pids []int, err error) {
	w, err := k.worker(p)
	if err != nil {
		return nil, nil, err
	}
	w.mu.Lock()
	list := slices.Clone(w.containers)
	w.mu.Unlock()
	for _, c := range list {
		process := c.process()
		if process == nil || (container != "" && container != c.spec.Name) {
			continue
		}
		if _, ended := process.Status(); ended {
			continue
		}
		if err := process.Signal(sig); err != nil {
			return names, pids, err
		}
		names = append(names, c.spec.Name)
		pids = append(pids, process.PID())
	}
	if len(names) == 0 {
		return nil, nil, fmt.Errorf("pod %s/%s has no running process to send %v to", p.Namespace, p.Name, sig)
	}
	return names, pids, nil
}
