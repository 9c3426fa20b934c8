// Package policy holds the objects of the group policy.marrow.io, which are Marrow's own: those for which neither Istio nor the Gateway
// API has one. The group's version is v1alpha1.
//
// It is data alone. internal/manifest reads and judges it, istiod-lite derives stock Envoy configuration from it, and
// manifests/crds holds the same schema for a Kubernetes API server (TestSchemaIsThatOfTheTypes).
package policy
