package app

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/xds"
)

// watchXDS turns the client's events into metrics and log lines.
func watchXDS(r prometheus.Registerer, log *obs.Logger) func(xds.Event) {
	ended := obs.Counter(r, "istio_xds_connection_terminations_total", "The total number of completed connections to xds server (unstable).", "reason")
	messages := obs.Counter(r, "istio_xds_message_total", "Total number of messages received (unstable).", "url")
	size := obs.Counter(r, "istio_xds_message_bytes_total", "Total number of bytes received (unstable).", "url")
	return func(e xds.Event) {
		switch e.Kind {
		case xds.EventConnected:
			log.Info("connected to the control plane")
		case xds.EventResponse:
			messages.WithLabelValues(e.URL).Inc()
			size.WithLabelValues(e.URL).Add(float64(e.Bytes))
			log.Debug("received response", obs.F("type_url", e.URL), obs.F("size", e.Bytes))
		case xds.EventRejected:
			log.Warn("answered with a refusal", obs.F("type_url", e.URL), obs.Err(e.Err))
		case xds.EventTerminated:
			ended.WithLabelValues(e.Reason).Inc()
			log.Warn("connection to the control plane ended, the last known state stays", obs.F("reason", e.Reason), obs.F("retry_in", e.Wait), obs.Err(e.Err))
		}
	}
}
