package view

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/marrowmesh/marrow/api/security"
	"github.com/marrowmesh/marrow/api/workload"
	"github.com/marrowmesh/marrow/internal/mesh"
	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/xds"
)

// WaitLimit is how long a connection waits for its own pod to become known.
const WaitLimit = 5 * time.Second

// Store holds the View. All methods are safe for concurrent use.
type Store struct {
	log *obs.Logger
	cur atomic.Pointer[mesh.View]
	// mu makes writers take turns; it guards changed.
	mu      sync.Mutex
	changed chan struct{}
}

// New is a store of the empty mesh.
func New(log *obs.Logger) *Store {
	s := &Store{log: log, changed: make(chan struct{})}
	s.cur.Store(mesh.NewView())
	return s
}

// Get is the View to make one decision with.
func (s *Store) Get() *mesh.View { return s.cur.Load() }

// Changed is closed at the next change. Subscribe before looking at the View.
func (s *Store) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// Apply swaps the View for one with the batch, then wakes everybody who waits.
func (s *Store) Apply(b mesh.Batch) []mesh.Reject {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, rejects := s.cur.Load().With(b)
	s.cur.Store(next)
	close(s.changed)
	s.changed = make(chan struct{})
	return rejects
}

// Types are the resource types that keep the store up to date, in the order to ask for them.
func (s *Store) Types() []*xds.Type {
	return []*xds.Type{
		{URL: xds.AddressType, Handle: s.ApplyAddresses},
		{URL: xds.AuthorizationType, Handle: s.ApplyAuthorizations},
	}
}

// ApplyAddresses takes over one response of workloads and services.
func (s *Store) ApplyAddresses(_ context.Context, updated []xds.Resource, removed []string) []xds.Reject {
	b := mesh.Batch{Removed: removed}
	var rejects []xds.Reject
	for _, r := range updated {
		if err := s.decodeAddress(r, &b); err != nil {
			rejects = append(rejects, s.reject(r.Name, err))
		}
	}
	return s.commit(b, rejects)
}

// ApplyAuthorizations takes over one response of policies.
func (s *Store) ApplyAuthorizations(_ context.Context, updated []xds.Resource, removed []string) []xds.Reject {
	b := mesh.Batch{RemovedPolicies: removed}
	var rejects []xds.Reject
	for _, r := range updated {
		p, err := decodePolicy(r)
		if err != nil {
			rejects = append(rejects, s.reject(r.Name, err))
			continue
		}
		b.Policies = append(b.Policies, p)
	}
	return s.commit(b, rejects)
}

func (s *Store) commit(b mesh.Batch, rejects []xds.Reject) []xds.Reject {
	if b.Empty() {
		return rejects
	}
	for _, r := range s.Apply(b) {
		rejects = append(rejects, s.reject(r.Name, r.Err))
	}
	return rejects
}

func (s *Store) reject(name string, err error) xds.Reject {
	s.log.Warn("refused a resource from the control plane", obs.F("resource", name), obs.Err(err))
	return xds.Reject{Name: name, Err: err}
}

func (s *Store) decodeAddress(r xds.Resource, b *mesh.Batch) error {
	if r.Body == nil {
		return errNoPayload
	}
	var a workload.Address
	if err := proto.Unmarshal(r.Body.GetValue(), &a); err != nil {
		return fmt.Errorf("payload is no istio.workload.Address: %w", err)
	}
	switch body := a.GetType().(type) {
	case *workload.Address_Workload:
		w, err := Workload(body.Workload)
		if err != nil {
			return err
		}
		b.Workloads = append(b.Workloads, w)
	case *workload.Address_Service:
		svc, ignored, err := Service(body.Service)
		if err != nil {
			return err
		}
		for _, err := range ignored {
			s.log.Warn("ignored a part of a service", obs.F("service", svc.ResourceName()), obs.Err(err))
		}
		b.Services = append(b.Services, svc)
	default:
		return fmt.Errorf("address has neither a workload nor a service: set one of the two")
	}
	return nil
}

func decodePolicy(r xds.Resource) (*mesh.Policy, error) {
	if r.Body == nil {
		return nil, errNoPayload
	}
	var a security.Authorization
	if err := proto.Unmarshal(r.Body.GetValue(), &a); err != nil {
		return nil, fmt.Errorf("payload is no istio.security.Authorization: %w", err)
	}
	return Policy(r.Name, &a)
}

// WaitWorkload finds the workload of a pod, waiting up to WaitLimit for the control plane to tell about it.
func (s *Store) WaitWorkload(ctx context.Context, node, namespace, name, serviceAccount string) (*mesh.Workload, error) {
	if w := s.Get().WorkloadByPod(node, namespace, name, serviceAccount); w != nil {
		return w, nil
	}
	limit := time.NewTimer(WaitLimit)
	defer limit.Stop()
	for {
		changed := s.Changed()
		if w := s.Get().WorkloadByPod(node, namespace, name, serviceAccount); w != nil {
			return w, nil
		}
		select {
		case <-changed:
		case <-limit.C:
			return nil, &UnknownPod{Namespace: namespace, Name: name, ServiceAccount: serviceAccount}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// UnknownPod reports a pod that the control plane did not tell about in time.
type UnknownPod struct {
	Namespace, Name, ServiceAccount string
}

func (u *UnknownPod) Error() string {
	return fmt.Sprintf("failed to fetch information about local workload: %s.%s (%s)", u.ServiceAccount, u.Namespace, u.Name)
}
