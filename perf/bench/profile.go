package bench

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/marrowmesh/marrow/perf/result"
)

// profiler takes CPU profiles of our proxies while blocks are timed. A profile
// that cannot be had is told of and spoils no block.
type profiler struct {
	dir   string // empty = no profiles
	tell  func(string)
	fetch func(ctx context.Context, w *world, node, url string, limit time.Duration) (string, error)
}

// slack is what a proxy may take to answer beyond the time that was asked for.
const slack = 10 * time.Second

// start asks the proxies on nodes for a profile of the next d, and returns what
// waits until it is written: it may be called more than once. It asks only
// proxies of ours: peers serve other pages, and variants would need names of
// their own.
func (p profiler) start(ctx context.Context, w *world, block result.Block, nodes []string, d time.Duration) (finish func()) {
	if p.dir == "" || block.Impl != result.Marrow {
		return func() {}
	}
	// Whole seconds, and rather less than d: what comes behind is idle.
	seconds := max(1, int(d/time.Second))
	url := fmt.Sprintf("http://127.0.0.1:15000/debug/pprof/profile?seconds=%d", seconds)
	errs := make([]error, len(nodes))
	var work sync.WaitGroup
	for i, node := range nodes {
		work.Go(func() {
			raw, err := p.fetch(ctx, w, node, url, time.Duration(seconds)*time.Second+slack)
			var out []byte
			if err == nil {
				out, err = anonymous([]byte(raw))
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(p.dir, profileName(block, node)), out, 0o644)
			}
			errs[i] = err
		})
	}
	return sync.OnceFunc(func() {
		work.Wait()
		for i, err := range errs {
			if err != nil {
				p.tell(fmt.Sprintf("%s, round %d: no CPU profile of the proxy on %s: %v", block.Scenario, block.Round, nodes[i], err))
			}
		}
	})
}

func fetchFrom(ctx context.Context, w *world, node, url string, limit time.Duration) (string, error) {
	return w.fetchWithin(ctx, node, url, limit)
}

func profileName(block result.Block, node string) string {
	return fmt.Sprintf("%s-%d-%s.pb.gz", block.Scenario, block.Round, node)
}

// Fields of a profile, as github.com/google/pprof/proto/profile.proto numbers them.
const (
	profileMapping  protowire.Number = 3
	profileString   protowire.Number = 6
	mappingFilename protowire.Number = 5
)

// anonymous takes the directories off the names of the programs in a profile:
// they say where this machine keeps them, and a profile is passed on. Functions
// and their files stay as they are.
func anonymous(compressed []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return nil, fmt.Errorf("what was served is no profile: %w", err)
	}
	raw, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("what was served is no whole profile: %w", err)
	}
	programs := map[uint64]bool{} // indexes of strings
	err = eachField(raw, func(num protowire.Number, value, _ []byte) error {
		if num != profileMapping {
			return nil
		}
		return eachField(value, func(num protowire.Number, value, _ []byte) error {
			if n, size := protowire.ConsumeVarint(value); num == mappingFilename && size > 0 {
				programs[n] = true
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	index := uint64(0)
	err = eachField(raw, func(num protowire.Number, value, whole []byte) error {
		if num == profileString {
			if programs[index] && path.IsAbs(string(value)) {
				whole = protowire.AppendTag(nil, num, protowire.BytesType)
				whole = protowire.AppendString(whole, path.Base(string(value)))
			}
			index++
		}
		_, err := z.Write(whole)
		return err
	})
	err = errors.Join(err, z.Close())
	return out.Bytes(), err
}

// eachField visits the fields of a message. value is a bytes field without its
// length, else as encoded; whole is the field with its tag.
func eachField(message []byte, visit func(num protowire.Number, value, whole []byte) error) error {
	for len(message) > 0 {
		num, kind, tag := protowire.ConsumeTag(message)
		if tag < 0 {
			return fmt.Errorf("profile: %w", protowire.ParseError(tag))
		}
		n := protowire.ConsumeFieldValue(num, kind, message[tag:])
		if n < 0 {
			return fmt.Errorf("profile: %w", protowire.ParseError(n))
		}
		value := message[tag : tag+n]
		if kind == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(value)
		}
		if err := visit(num, value, message[:tag+n]); err != nil {
			return err
		}
		message = message[tag+n:]
	}
	return nil
}
