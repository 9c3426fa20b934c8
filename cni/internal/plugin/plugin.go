package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"

	"github.com/marrowmesh/marrow/cni/internal/pods"
	"github.com/marrowmesh/marrow/internal/obs"
)

// bodyLimit is far more than any pod's addresses need.
const bodyLimit = 64 << 10

// Enroller puts a new pod into the mesh.
type Enroller interface {
	Enrol(ctx context.Context, r pods.Request) error
}

// event is what the plugin posts.
type event struct {
	Netns        string
	PodName      string
	PodNamespace string
	IPs          []address
}

type address struct {
	Interface *int
	Address   net.IPNet
	Gateway   net.IP
}

// Listen opens the socket for root alone, in place of a stale one.
func Listen(path string) (net.Listener, error) {
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() == fs.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("plugin socket: remove the stale one: %w", err)
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("plugin socket: %w", err)
	}
	// By the time we end, the path may be the next agent's.
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("plugin socket: %w", err)
	}
	return l, nil
}

// Handler serves POST /cmdadd.
func Handler(e Enroller, log *obs.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /cmdadd", func(w http.ResponseWriter, req *http.Request) {
		r, err := read(w, req)
		if err != nil {
			log.Warn("a request of the CNI plugin is refused", obs.Err(err))
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if err := e.Enrol(req.Context(), r); err != nil {
			if !errors.Is(err, pods.ErrNotEligible) {
				log.Warn("a new pod was not enrolled", obs.F("pod", r.Namespace+"/"+r.Name), obs.Err(err))
			}
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusOK)
	})
	return mux
}

func read(w http.ResponseWriter, req *http.Request) (pods.Request, error) {
	var e event
	if err := json.NewDecoder(http.MaxBytesReader(w, req.Body, bodyLimit)).Decode(&e); err != nil {
		return pods.Request{}, fmt.Errorf("request of the CNI plugin: %w", err)
	}
	r := pods.Request{Name: e.PodName, Namespace: e.PodNamespace, Netns: e.Netns}
	if r.Name == "" || r.Namespace == "" || r.Netns == "" {
		return r, fmt.Errorf("request of the CNI plugin: PodName %q, PodNamespace %q and Netns %q must all be given", r.Name, r.Namespace, r.Netns)
	}
	for _, a := range e.IPs {
		ip, ok := netip.AddrFromSlice(a.Address.IP)
		if !ok {
			return r, fmt.Errorf("request of the CNI plugin: pod %s/%s: address %q is none", r.Namespace, r.Name, a.Address.IP)
		}
		r.IPs = append(r.IPs, ip.Unmap())
	}
	if len(r.IPs) == 0 {
		return r, fmt.Errorf("request of the CNI plugin: pod %s/%s has no address", r.Namespace, r.Name)
	}
	return r, nil
}
