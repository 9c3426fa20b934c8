// Package manifests holds the YAML that ships inside the programs: the demo's
// world and the policies and routes of its steps. Users may apply the same
// files by hand.
//
// It holds no logic.
package manifests
