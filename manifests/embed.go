package manifests

import "embed"

//go:embed samples
var samples embed.FS

// Samples are the files below samples/, read-only.
func Samples() embed.FS { return samples }
