// Package file is the source of pods that reads a directory of Kubernetes
// objects: the lab's cluster.
//
// It keeps to the pods of one node, and never judges them.
//
// Invariants: a pod made anew under an old name is another pod, and the old
// one is gone (TestRecreatedPod); an annotation is written to the pod of the
// same uid only (TestAnnotateChecksUID).
//
// Neighbours: internal/filestore; pods.Source is what it is.
package file
