package obs

import "github.com/prometheus/client_golang/prometheus"

// Tunnels is what all tunnels of a process do together: each function is called at every scrape.
type Tunnels struct {
	Frames func() uint64 // HTTP/2 frames written
	Copied func() uint64 // bytes copied on their way, other than by encryption
	Queued func() int64  // bytes that wait for owners who do not read
}

// Register shows the sums as marrow_tunnel_*.
func (t Tunnels) Register(r prometheus.Registerer) {
	r.MustRegister(
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "marrow_tunnel_frames_total", Help: "HTTP/2 frames written to tunnels.",
		}, func() float64 { return float64(t.Frames()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "marrow_tunnel_copied_bytes_total", Help: "Bytes of connections that were copied on their way through tunnels, other than by encryption.",
		}, func() float64 { return float64(t.Copied()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "marrow_tunnel_queued_bytes", Help: "Bytes that came through tunnels and wait for applications that do not read.",
		}, func() float64 { return float64(t.Queued()) }),
	)
}
