package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/marrowmesh/marrow/internal/filestore"
	"github.com/marrowmesh/marrow/internal/lab/fabric"
	"github.com/marrowmesh/marrow/internal/lab/labdns"
	"github.com/marrowmesh/marrow/internal/lab/plan"
	"github.com/marrowmesh/marrow/internal/manifest"
)

// network is what Services are programmed into; *fabric.Fabric is one.
type network interface {
	SetServices(services []fabric.Service) error
}

// names is what Services are resolved by; *labdns.Server is one.
type names interface {
	SetRecords(r labdns.Records)
}

// controller brings the world in line with what its objects ask for, one
// round per change.
type controller struct {
	world  *world
	net    network
	names  names
	sync   func([]*corev1.Pod) // the kubelet
	ranges plan.Ranges
	note   func(format string, args ...any)

	// last programmed, so that unchanged Services cost nothing.
	lastNet   []fabric.Service
	lastNames labdns.Records
	said      map[string]bool // complaints already made
}

// run reacts to changes until ctx ends.
func (c *controller) run(ctx context.Context) error {
	c.said = map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.world.changed:
		}
		c.round()
	}
}

// round looks at everything once. Each step sees what the ones before wrote
// only in the next round, which its own write causes.
func (c *controller) round() {
	s := c.world.snapshot()
	c.allocate(s)
	c.deploy(s)
	c.schedule(s)
	// Nobody shall be led to an ending pod: Services change before its
	// containers hear of it.
	c.serve(s)
	c.sync(s.pods)
	c.finalize(s)
}

// complain says a problem once.
func (c *controller) complain(err error) {
	if err == nil || errors.Is(err, filestore.ErrNotFound) {
		return // deleted meanwhile: nothing is left to do
	}
	if text := err.Error(); !c.said[text] {
		c.said[text] = true
		c.note("%s", text)
	}
}

// allocate gives Services their addresses.
func (c *controller) allocate(s snapshot) {
	for _, svc := range s.services {
		if plan.Allocated(svc) {
			continue
		}
		used := plan.Used(c.world.snapshot().services, svc)
		c.complain(c.world.patch(manifest.KeyOf(svc), func(o manifest.Object) error {
			stored, ok := o.(*corev1.Service)
			if !ok {
				return filestore.ErrNotFound
			}
			return plan.ClusterIPs(stored, c.ranges, used)
		}))
	}
}

// deploy makes and marks the pods of Deployments.
func (c *controller) deploy(s snapshot) {
	for _, d := range s.deployments {
		if d.DeletionTimestamp != nil {
			continue
		}
		r := plan.Deploy(d, s.pods, func() string { return plan.Suffix(rand.Uint64()) })
		for _, p := range r.Create {
			c.complain(c.world.put(p))
		}
		for _, p := range r.Delete {
			c.complain(c.mark(p))
		}
		c.complain(c.deploymentStatus(d, r.Status))
	}
	for _, p := range plan.Orphans(s.deployments, s.pods) {
		c.complain(c.mark(p))
	}
}

func (c *controller) deploymentStatus(d *appsv1.Deployment, status appsv1.DeploymentStatus) error {
	now := metav1.Now()
	for i := range status.Conditions {
		cond := &status.Conditions[i]
		cond.LastTransitionTime, cond.LastUpdateTime = now, now
		for _, old := range d.Status.Conditions {
			if old.Type == cond.Type && old.Status == cond.Status && old.Message == cond.Message {
				cond.LastTransitionTime, cond.LastUpdateTime = old.LastTransitionTime, old.LastUpdateTime
			}
		}
	}
	if reflect.DeepEqual(d.Status, status) {
		return nil
	}
	return c.world.patch(manifest.KeyOf(d), func(o manifest.Object) error {
		if stored, ok := o.(*appsv1.Deployment); ok {
			stored.Status = status
		}
		return nil
	})
}

// mark begins a pod's graceful end; the kubelet removes the object after it.
func (c *controller) mark(p *corev1.Pod) error {
	return markPod(c.world, p, nil)
}

func markPod(w *world, p *corev1.Pod, grace *int64) error {
	return w.PatchPod(p.Namespace, p.Name, p.UID, func(stored *corev1.Pod) {
		if stored.DeletionTimestamp == nil {
			now := metav1.Now()
			stored.DeletionTimestamp = &now
			stored.DeletionGracePeriodSeconds = stored.Spec.TerminationGracePeriodSeconds
		}
		if grace != nil {
			stored.DeletionGracePeriodSeconds = grace
		}
		for i := range stored.Status.Conditions {
			if stored.Status.Conditions[i].Type == corev1.PodReady {
				stored.Status.Conditions[i].Status = corev1.ConditionFalse
			}
		}
	})
}

// schedule completes new pods and gives them a node.
func (c *controller) schedule(s snapshot) {
	pods := s.pods
	for i, p := range pods {
		if p.Spec.NodeName != "" && plan.Defaulted(p) {
			continue
		}
		if p.DeletionTimestamp != nil && p.Spec.NodeName == "" {
			c.complain(c.world.RemovePod(p.Namespace, p.Name, p.UID))
			continue
		}
		node, err := plan.Schedule(p, s.nodes, pods)
		c.complain(err)
		c.complain(c.world.PatchPod(p.Namespace, p.Name, p.UID, func(stored *corev1.Pod) {
			plan.DefaultPod(stored)
			stored.Spec.NodeName = node
			if err != nil {
				stored.Status.Phase = corev1.PodPending
				stored.Status.Reason, stored.Status.Message = "Unschedulable", err.Error()
			}
		}))
		if node != "" {
			// The next pod of this round must see where this one went.
			placed := p.DeepCopy()
			placed.Spec.NodeName = node
			pods[i] = placed
		}
	}
}

// serve programs Services into the network and the DNS.
func (c *controller) serve(s snapshot) {
	var nets []fabric.Service
	var records labdns.Records
	for _, svc := range s.services {
		behind := plan.Behind(svc, s.pods)
		nets = append(nets, netService(svc, behind))
		records.Services = append(records.Services, nameService(svc, behind))
	}
	if !reflect.DeepEqual(nets, c.lastNet) {
		if err := c.net.SetServices(nets); err != nil {
			c.complain(fmt.Errorf("program the services: %w", err))
		} else {
			c.lastNet = nets
		}
	}
	for _, p := range s.pods {
		if addrs := plan.PodAddresses(p); len(addrs) > 0 && !p.Spec.HostNetwork {
			records.Pods = append(records.Pods, labdns.Pod{Namespace: p.Namespace, Addrs: addrs})
		}
	}
	if !reflect.DeepEqual(records, c.lastNames) {
		c.names.SetRecords(records)
		c.lastNames = records
	}
}

func netService(svc *corev1.Service, behind []plan.Backing) fabric.Service {
	out := fabric.Service{Name: svc.Namespace + "/" + svc.Name, VIPs: plan.Addresses(svc)}
	for _, p := range svc.Spec.Ports {
		port := fabric.ServicePort{Protocol: fabric.TCP, Port: uint16(p.Port)}
		switch p.Protocol {
		case corev1.ProtocolUDP:
			port.Protocol = fabric.UDP
		case corev1.ProtocolSCTP:
			continue
		default: // TCP, also where nothing is said
		}
		port.Endpoints = append(plan.Backends(p, behind, false), plan.Backends(p, behind, true)...)
		out.Ports = append(out.Ports, port)
	}
	return out
}

func nameService(svc *corev1.Service, behind []plan.Backing) labdns.Service {
	n := labdns.Service{Namespace: svc.Namespace, Name: svc.Name, Addrs: plan.Addresses(svc)}
	for _, p := range svc.Spec.Ports {
		n.Ports = append(n.Ports, labdns.Port{Name: p.Name, Protocol: string(p.Protocol), Port: uint16(p.Port)})
	}
	switch {
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		n.ExternalName = svc.Spec.ExternalName
	case svc.Spec.ClusterIP == corev1.ClusterIPNone:
		for _, b := range behind {
			n.Addrs = append(n.Addrs, b.Addrs...)
			if b.Pod.Spec.Hostname != "" {
				n.Hosts = append(n.Hosts, labdns.Host{Name: b.Pod.Spec.Hostname, Addrs: b.Addrs})
			}
		}
	}
	return n
}

// finalize removes namespaces that were marked, when their pods have ended.
func (c *controller) finalize(s snapshot) {
	for _, ns := range s.namespaces {
		if ns.DeletionTimestamp == nil {
			continue
		}
		alive := 0
		for _, p := range s.pods {
			if p.Namespace != ns.Name {
				continue
			}
			alive++
			if p.DeletionTimestamp == nil {
				c.complain(c.mark(p))
			}
		}
		if alive == 0 {
			c.complain(c.world.remove(manifest.KeyOf(ns)))
		}
	}
}
