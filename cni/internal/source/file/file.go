package file

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/marrowmesh/marrow/cni/internal/pods"
	"github.com/marrowmesh/marrow/internal/filestore"
	"github.com/marrowmesh/marrow/internal/manifest"
	"github.com/marrowmesh/marrow/internal/obs"
)

// AnnotationNetns is where the lab writes the path of a pod's namespace.
const AnnotationNetns = "lab.marrowmesh.io/netns"

// Source watches one node's pods in a directory.
type Source struct {
	store *filestore.Store
	node  string
	log   *obs.Logger
}

// Open opens the directory.
func Open(dir, node string, log *obs.Logger) (*Source, error) {
	store, err := filestore.Open(dir)
	if err != nil {
		return nil, err
	}
	return &Source{store: store, node: node, log: log}, nil
}

// Watch implements pods.Source.
func (s *Source) Watch(ctx context.Context) (<-chan pods.Batch, error) {
	events, err := s.store.Watch(ctx)
	if err != nil {
		return nil, err
	}
	out := make(chan pods.Batch)
	go func() { // ends with ctx, as events does; closing out says so
		defer close(out)
		known := map[manifest.Key]string{}
		for first := true; ; first = false {
			batch, ok := <-events
			if !ok {
				return
			}
			b := s.convert(batch, known)
			if !first && len(b.Pods)+len(b.Namespaces) == 0 {
				continue
			}
			select {
			case out <- b:
			case <-ctx.Done():
			}
		}
	}()
	return out, nil
}

// convert keeps in known the uid that each of our keys had.
func (s *Source) convert(events []filestore.Event, known map[manifest.Key]string) pods.Batch {
	b := pods.Batch{Pods: map[string]*pods.Pod{}, Namespaces: map[string]map[string]string{}}
	for _, e := range events {
		switch {
		case e.Key.Group != "" || e.Key.Kind != "Pod" && e.Key.Kind != "Namespace":
		case e.Err != nil:
			s.log.Warn("an object cannot be read, its last good form counts", obs.F("object", e.Key.String()), obs.Err(e.Err))
		case e.Key.Kind == "Namespace":
			b.Namespaces[e.Key.Name] = nil
			if e.Object != nil {
				labels := e.Object.GetLabels()
				if labels == nil {
					labels = map[string]string{}
				}
				b.Namespaces[e.Key.Name] = labels
			}
		default:
			s.pod(b, e, known)
		}
	}
	return b
}

func (s *Source) pod(b pods.Batch, e filestore.Event, known map[manifest.Key]string) {
	before := known[e.Key]
	p, ok := e.Object.(*corev1.Pod)
	if !ok || p.Spec.NodeName != s.node || p.UID == "" {
		if before != "" {
			b.Pods[before] = nil
			delete(known, e.Key)
		}
		return
	}
	uid := string(p.UID)
	if before != "" && before != uid {
		b.Pods[before] = nil
	}
	known[e.Key] = uid
	b.Pods[uid] = convertPod(p)
}

func convertPod(p *corev1.Pod) *pods.Pod {
	out := &pods.Pod{
		UID: string(p.UID), Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.Spec.ServiceAccountName,
		HostNetwork: p.Spec.HostNetwork, Ended: p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
		Labels: p.Labels, Annotations: p.Annotations, Netns: p.Annotations[AnnotationNetns],
	}
	if out.ServiceAccount == "" {
		out.ServiceAccount = "default"
	}
	list := p.Status.PodIPs
	if len(list) == 0 && p.Status.PodIP != "" {
		list = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	for _, ip := range list {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out.IPs = append(out.IPs, a.Unmap())
		}
	}
	return out
}

// errSame ends a patch that would change nothing.
var errSame = errors.New("no change")

// Annotate implements pods.Source.
func (s *Source) Annotate(_ context.Context, p pods.Pod, state string) error {
	key := manifest.Key{Kind: "Pod", Namespace: p.Namespace, Name: p.Name}
	err := s.store.Patch(key, func(o manifest.Object) error {
		if string(o.GetUID()) != p.UID {
			return filestore.ErrNotFound // another pod of the same name
		}
		notes := o.GetAnnotations()
		if notes[pods.AnnotationRedirection] == state {
			return errSame
		}
		if notes == nil {
			notes = map[string]string{}
		}
		if state == "" {
			delete(notes, pods.AnnotationRedirection)
		} else {
			notes[pods.AnnotationRedirection] = state
		}
		o.SetAnnotations(notes)
		return nil
	})
	if errors.Is(err, errSame) || errors.Is(err, filestore.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write pod %s: %w", key, err)
	}
	return nil
}
