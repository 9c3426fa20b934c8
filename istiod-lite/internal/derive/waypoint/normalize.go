package waypoint

import (
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	meshapi "istio.io/api/mesh/v1alpha1"
)

// normalize says how a path is brought to one form before policies and routes see it; the application gets that form too. What a
// newer control plane may have written is not known here, and the strictest form refuses most spellings.
func normalize(m *hcmv3.HttpConnectionManager, p *meshapi.MeshConfig_ProxyPathNormalization) {
	// An escaped slash stays one unless the mesh's applications read it as a slash.
	m.PathWithEscapedSlashesAction = hcmv3.HttpConnectionManager_KEEP_UNCHANGED
	m.NormalizePath = boolValue(true)
	switch p.GetNormalization() {
	case meshapi.MeshConfig_ProxyPathNormalization_NONE:
		m.NormalizePath = boolValue(false)
	case meshapi.MeshConfig_ProxyPathNormalization_DEFAULT, meshapi.MeshConfig_ProxyPathNormalization_BASE:
	case meshapi.MeshConfig_ProxyPathNormalization_MERGE_SLASHES:
		m.MergeSlashes = true
	default: // DECODE_AND_MERGE_SLASHES
		m.MergeSlashes = true
		m.PathWithEscapedSlashesAction = hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD
	}
}
