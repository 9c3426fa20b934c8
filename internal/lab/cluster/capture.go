package cluster

import (
	"fmt"
	"net/http"

	"github.com/marrowmesh/marrow/internal/lab/fabric"
)

// getCapture streams the packets of a pod, a node or the fabric as pcap.
func (c *cluster) getCapture(w http.ResponseWriter, r *http.Request) error {
	t := parseTarget(r)
	iface := r.URL.Query().Get("iface")
	ns, ok := c.namespaceOf(t)
	if !ok {
		p, err := c.pod(t)
		if err != nil {
			return err
		}
		pn, found := c.fabric.Pod(string(p.UID))
		if !found {
			return bad(fmt.Errorf("pod %s/%s has no network of its own; capture its node %s", p.Namespace, p.Name, p.Spec.NodeName))
		}
		ns = pn.Netns()
	}
	switch {
	case iface == "any":
		iface = ""
	case iface == "" && t.Name != "fabric":
		iface = "eth0"
	}
	capture, err := fabric.StartCapture(ns, iface, flusher{w})
	if err != nil {
		return bad(err)
	}
	w.Header().Set("Content-Type", "application/vnd.tcpdump.pcap")
	select {
	case <-r.Context().Done():
	case <-capture.Ended():
	}
	// The status is sent: what goes wrong now can only end the stream.
	_, _ = capture.Stop()
	return nil
}
