package filters

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	localv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	globalv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	setmetadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_metadata/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/marrowmesh/marrow/waypoint/internal/strict"
)

const (
	localLimitType  = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
	globalLimitType = "envoy.extensions.filters.http.ratelimit.v3.RateLimit"
	globalRouteType = "envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute"
	setMetadataType = "envoy.extensions.filters.http.set_metadata.v3.Config"
)

// compileLimiter compiles the filters that limit rates, and the one that says their limits.
func compileLimiter(a *anypb.Any, inRoute bool) (HTTP, error) {
	switch typeName(a) {
	case localLimitType:
		p := &localv3.LocalRateLimit{}
		if err := a.UnmarshalTo(p); err != nil {
			return nil, err
		}
		return compileLocalLimit(p, inRoute)
	case globalLimitType:
		p := &globalv3.RateLimit{}
		if err := a.UnmarshalTo(p); err != nil {
			return nil, err
		}
		return compileGlobalLimit(p)
	case globalRouteType:
		p := &globalv3.RateLimitPerRoute{}
		if err := a.UnmarshalTo(p); err != nil {
			return nil, err
		}
		return compileGlobalRoute(p)
	case setMetadataType:
		p := &setmetadatav3.Config{}
		if err := a.UnmarshalTo(p); err != nil {
			return nil, err
		}
		return compileSetMetadata(p)
	}
	return nil, fmt.Errorf("type %s: %w", a.GetTypeUrl(), strict.ErrUnsupported)
}

// name tells a limit by which name it is counted.
func name(f HTTP, n string) {
	switch f := f.(type) {
	case *LocalLimit:
		f.Name = n
	case *GlobalLimit:
		f.Name = n
	}
}

// GlobalChange is the most specific change of the filter of a name; nil = none.
func GlobalChange(name string, by ...Overrides) *GlobalRoute {
	for _, b := range slices.Backward(by) {
		if o, ok := b[name]; ok {
			r, _ := o.(*GlobalRoute)
			return r
		}
	}
	return nil
}

// Place tells the limits among the overrides where they stand: buckets of two places are two, though they may be equal.
func (o Overrides) Place(where string) {
	for name, f := range o {
		if l, ok := f.(*LocalLimit); ok {
			l.place(where + "|" + name)
		}
	}
}

// Place does the same for a filter of a chain.
func (n Named) Place(where string) {
	if l, ok := n.Filter.(*LocalLimit); ok {
		l.place(where + "|" + n.Name)
	}
}

func (l *LocalLimit) place(where string) {
	sum := sha256.Sum256([]byte(l.content))
	l.ID = where + "|" + hex.EncodeToString(sum[:8])
}
