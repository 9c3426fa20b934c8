package obs

import (
	"runtime"
	"runtime/debug"
)

// Build says what this binary was made from.
type Build struct {
	Version      string `json:"version"`
	GitRevision  string `json:"gitRevision"`
	RustVersion  string `json:"rustVersion"` // the compiler; the key is the one istioctl reads
	BuildProfile string `json:"buildProfile"`
	BuildStatus  string `json:"buildStatus"` // Clean or Modified
	IstioVersion string `json:"istioVersion"`
	CryptoModule string `json:"cryptoProvider"`
}

// BuildInfo reads what the Go linker recorded. istioVersion is the version the
// deployment says it belongs to.
func BuildInfo(istioVersion string) Build {
	b := Build{
		Version: "devel", GitRevision: "unknown", RustVersion: runtime.Version(), BuildProfile: "release",
		BuildStatus: "Clean", IstioVersion: istioVersion, CryptoModule: "go-crypto",
	}
	if b.IstioVersion == "" {
		b.IstioVersion = "unknown"
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		b.Version = v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.GitRevision = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				b.BuildStatus = "Modified"
			}
		case "-race":
			b.BuildProfile = "race"
		}
	}
	return b
}
