package manifests

import "embed"

//go:embed samples
var samples embed.FS //nolint:gochecknoglobals // embedded files need a variable; it is never written

// Samples are the files below samples/, read-only.
func Samples() embed.FS { return samples }
