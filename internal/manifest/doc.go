// Package manifest turns Kubernetes YAML into typed objects and back.
//
// It accepts the kinds that the project reads (see kinds.go) in every version that their owners still serve and gives
// each of them one Go type, so the rooms above never ask which version a file was written in. Decoding is strict: an
// unknown field, a wrong type or a value that the owner's validating webhook would refuse is an [Error] that names the
// file, the document, the object, the field and what to do. One bad object does not hold back the others.
//
// It never talks to a cluster, never watches files and never fills in what a kubelet or a controller would write.
//
// Invariants:
//   - TestEncodeRoundTrips: Decode(Encode(o)) equals o.
//   - TestUnknownFieldIsRefused: an unknown field at any depth of any kind is refused with its path.
//   - TestGoodObjectsStand: the objects beside a refused one are returned.
//   - TestEveryKindKnowsItself: KeyOf an object made for a kind names that kind, with or without TypeMeta.
//
// Neighbours: filestore keeps encoded objects in a directory; istiod-lite's source/file and the lab read through both.
package manifest
