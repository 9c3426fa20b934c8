package match

import (
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

// million is the unit in which a Fraction counts.
const million = 1_000_000

// Rand answers a number in [0, n); it is given by the caller so that decisions can be repeated.
type Rand func(n uint64) uint64

// Fraction is a share of requests in parts of a million. The zero value is none of them.
type Fraction uint32

// Always is every request.
const Always Fraction = million

// Hit reports whether this request is one of the share. It takes no random number when the answer is certain.
func (f Fraction) Hit(rnd Rand) bool {
	switch {
	case f == 0:
		return false
	case f >= Always:
		return true
	}
	return rnd(million) < uint64(f)
}

// CompileFraction compiles Envoy's FractionalPercent.
func CompileFraction(p *typev3.FractionalPercent) (Fraction, error) {
	if err := strict.Only(p, "numerator", "denominator"); err != nil {
		return 0, err
	}
	n := uint64(p.GetNumerator())
	switch p.GetDenominator() {
	case typev3.FractionalPercent_HUNDRED:
		n *= million / 100
	case typev3.FractionalPercent_TEN_THOUSAND:
		n *= million / 10_000
	case typev3.FractionalPercent_MILLION:
	default:
		return 0, fmt.Errorf("denominator %v: %w", p.GetDenominator(), strict.ErrUnsupported)
	}
	return Fraction(min(n, million)), nil
}

// CompileRuntime compiles a fraction that Envoy could change at run time; the default value counts here, as there is no runtime layer.
func CompileRuntime(p *corev3.RuntimeFractionalPercent) (Fraction, error) {
	if p == nil {
		return Always, nil
	}
	if p.GetDefaultValue() == nil {
		return 0, fmt.Errorf("runtime fraction %q has no default value", p.GetRuntimeKey())
	}
	return CompileFraction(p.GetDefaultValue())
}
