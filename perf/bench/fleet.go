package bench

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/marrowmesh/marrow/internal/lab"
	"github.com/marrowmesh/marrow/perf/scenario"
)

const (
	labPrefix   = "perf-"
	coldSuffix  = "-cold"
	l7Suffix    = "-l7"
	freshSuffix = "-new"
)

// fleet is the labs of a run.
type fleet struct {
	cfg    Config
	tell   func(string)
	worlds map[string]*world // by the lab's name
}

func newFleet(cfg Config, tell func(string)) *fleet {
	return &fleet{cfg: cfg, tell: tell, worlds: map[string]*world{}}
}

// use is what a lab is for.
type use int

const (
	ofPods     use = iota // connections between many pods
	ofTwo                 // between two
	ofCold                // the proxies give up unused tunnels
	ofRequests            // two pods and waypoints
)

func useOf(s scenario.Scenario) use {
	switch {
	case s.How == scenario.Cold:
		return ofCold
	case s.Requested():
		return ofRequests
	}
	return ofPods
}

func (u use) pods() []pod {
	if u == ofTwo || u == ofRequests {
		return justTwo()
	}
	return everybody()
}

// get is the lab of an implementation for a use, booted when it is asked for
// first. Without a mesh there is one for all.
func (f *fleet) get(ctx context.Context, i Impl, u use) (*world, error) {
	name := labPrefix + i.Name
	switch {
	case !i.mesh():
		u = ofPods
	case u == ofCold:
		name += coldSuffix
		i.Env = append(slices.Clone(i.Env), "POOL_UNUSED_RELEASE_TIMEOUT="+scenario.ColdRelease.String())
	case u == ofRequests:
		name += l7Suffix
	}
	if w := f.worlds[name]; w != nil {
		return w, nil
	}
	return f.up(ctx, name, i, u)
}

// fresh is a new lab of two pods, for memory: nothing has been through its
// proxies. The caller ends it by release.
func (f *fleet) fresh(ctx context.Context, i Impl) (*world, error) {
	return f.up(ctx, labPrefix+i.Name+freshSuffix, i, ofTwo)
}

func (f *fleet) release(ctx context.Context, w *world) error {
	delete(f.worlds, w.name())
	return w.lab.Down(context.WithoutCancel(ctx))
}

func (f *fleet) up(ctx context.Context, name string, i Impl, u use) (*world, error) {
	began := time.Now()
	o := f.cfg.Lab
	o.Name, o.Nodes, o.NoMesh = name, 2, !i.mesh()
	if err := o.Normalize(); err != nil { // finds the directory of the programs
		return nil, err
	}
	if i.mesh() && (len(i.Ztunnel) > 0 || len(i.Env) > 0) {
		command := i.Ztunnel
		if len(command) == 0 {
			command = []string{filepath.Join(o.BinDir, "ztunnel")}
		}
		// The environment is for the proxy alone, not for the lab's other components.
		o.Commands.Ztunnel = slices.Concat([]string{"env"}, i.Env, command)
	}
	o.Commands.Waypoint = i.Waypoint
	l, err := lab.Up(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("lab of %s: %w", i.Name, err)
	}
	w := newWorld(l, i)
	w.use = u
	f.worlds[name] = w
	if err := w.populate(ctx, u.pods()); err != nil {
		return nil, errors.Join(fmt.Errorf("lab of %s: %w", i.Name, err), f.release(ctx, w))
	}
	if !strings.HasSuffix(name, freshSuffix) {
		f.tell(fmt.Sprintf("lab %s is up, %.1f s", name, time.Since(began).Seconds()))
	}
	return w, nil
}

func (f *fleet) all() []*world {
	var out []*world
	for _, w := range f.worlds {
		out = append(out, w)
	}
	slices.SortFunc(out, byName)
	return out
}

// down ends all labs.
func (f *fleet) down(ctx context.Context) error {
	var errs []error
	for _, w := range f.all() {
		errs = append(errs, f.release(ctx, w))
	}
	return errors.Join(errs...)
}
