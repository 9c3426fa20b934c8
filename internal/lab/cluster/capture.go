package cluster

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/internal/lab/fabric"
)

// recordings are the captures into files that run now.
type recordings struct {
	mu   sync.Mutex
	next int
	live map[string]*recording
}

type recording struct {
	capture *fabric.Capture
	file    *os.File
	info    lab.Recording
}

// where finds the namespace and interface that a capture is asked for.
func (c *cluster) where(t lab.Target, iface string) (*fabric.Netns, string, error) {
	ns, ok := c.namespaceOf(t)
	if !ok {
		p, err := c.pod(t)
		if err != nil {
			return nil, "", err
		}
		pn, found := c.fabric.Pod(string(p.UID))
		if !found {
			return nil, "", bad(fmt.Errorf("pod %s/%s has no network of its own; capture its node %s", p.Namespace, p.Name, p.Spec.NodeName))
		}
		ns = pn.Netns()
	}
	switch {
	case iface == "any":
		iface = ""
	case iface == "" && t.Name != "fabric":
		iface = "eth0"
	}
	return ns, iface, nil
}

// getCapture streams the packets of a pod, a node or the fabric as pcap.
func (c *cluster) getCapture(w http.ResponseWriter, r *http.Request) error {
	ns, iface, err := c.where(parseTarget(r), r.URL.Query().Get("iface"))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/vnd.tcpdump.pcap")
	capture, err := fabric.StartCapture(ns, iface, flusher{w})
	if err != nil {
		return bad(err)
	}
	select {
	case <-r.Context().Done():
	case <-capture.Ended():
	}
	// The status is sent: what goes wrong now can only end the stream.
	_, _ = capture.Stop()
	return nil
}

// postRecording starts a capture into a file.
func (c *cluster) postRecording(w http.ResponseWriter, r *http.Request) error {
	var req lab.CaptureRequest
	if err := decode(r, &req); err != nil {
		return err
	}
	ns, iface, err := c.where(req.Target, req.Interface)
	if err != nil {
		return err
	}
	rec := &c.recordings
	rec.mu.Lock()
	defer rec.mu.Unlock()
	if rec.live == nil {
		rec.live = map[string]*recording{}
	}
	rec.next++
	id := fmt.Sprintf("%d", rec.next)
	dir := filepath.Join(c.state.Dir, "captures")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, id+".pcap"))
	if err != nil {
		return err
	}
	capture, err := fabric.StartCapture(ns, iface, f)
	if err != nil {
		_ = f.Close()
		return bad(err)
	}
	one := &recording{capture: capture, file: f, info: lab.Recording{ID: id, Path: f.Name()}}
	rec.live[id] = one
	return answer(w, one.info)
}

// deleteRecording ends a capture into a file and says what it saw.
func (c *cluster) deleteRecording(w http.ResponseWriter, r *http.Request) error {
	id := r.URL.Query().Get("id")
	c.recordings.mu.Lock()
	one, ok := c.recordings.live[id]
	delete(c.recordings.live, id)
	c.recordings.mu.Unlock()
	if !ok {
		return notFound(fmt.Errorf("recording %q does not run", id))
	}
	stats, err := one.capture.Stop()
	if cerr := one.file.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	one.info.Packets, one.info.Dropped = stats.Packets, stats.Dropped
	return answer(w, one.info)
}

// stopRecordings ends what runs still; the lab is about to end.
func (c *cluster) stopRecordings() {
	c.recordings.mu.Lock()
	defer c.recordings.mu.Unlock()
	for id, one := range c.recordings.live {
		_, _ = one.capture.Stop() // nobody asks for it any more
		_ = one.file.Close()
		delete(c.recordings.live, id)
	}
}
