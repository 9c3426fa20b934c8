package kube

import (
	"maps"
	"slices"
)

// Selects says that labels have every pair of selector. A selector without pairs selects nothing: callers for whom it
// means everything ask before.
func Selects(selector, labels map[string]string) bool {
	if len(selector) == 0 {
		return false
	}
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Anchor is one label pair of a selector in a namespace. Objects that select are indexed by the anchor of their
// selector, objects that are selected look up each of their pairs, so that a change touches only those who share it.
type Anchor struct{ Namespace, Key, Value string }

// SelectorAnchor returns the pair by which a selector is indexed; ok is false if it selects nothing.
func SelectorAnchor(namespace string, selector map[string]string) (a Anchor, ok bool) {
	if len(selector) == 0 {
		return Anchor{}, false
	}
	k := slices.Min(slices.Collect(maps.Keys(selector)))
	return Anchor{Namespace: namespace, Key: k, Value: selector[k]}, true
}

// LabelAnchors returns where the selectors that may select labels are indexed.
func LabelAnchors(namespace string, labels map[string]string) []Anchor {
	out := make([]Anchor, 0, len(labels))
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, Anchor{Namespace: namespace, Key: k, Value: labels[k]})
	}
	return out
}
