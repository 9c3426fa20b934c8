package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/marrowmesh/marrow/internal/manifest"
)

// ReadManifests reads objects from files, directories and "-" (stdin). All
// errors are told together, each with file, document, object and field.
func ReadManifests(stdin io.Reader, paths ...string) ([]manifest.Object, error) {
	var out []manifest.Object
	var errs []error
	for _, p := range paths {
		objects, err := readManifest(stdin, p)
		if err != nil {
			errs = append(errs, err)
		}
		out = append(out, objects...)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return out, nil
}

func readManifest(stdin io.Reader, path string) ([]manifest.Object, error) {
	if path == "-" {
		return manifest.Decode("standard input", stdin)
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	if st.IsDir() {
		return manifest.DecodeDir(path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	defer func() { _ = f.Close() }()
	return manifest.Decode(path, f)
}

// EncodeAll writes objects as one YAML stream.
func EncodeAll(objects []manifest.Object) ([]byte, error) {
	var b bytes.Buffer
	for _, o := range objects {
		raw, err := manifest.Encode(o)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", manifest.KeyOf(o), err)
		}
		b.WriteString("---\n")
		b.Write(raw)
	}
	return b.Bytes(), nil
}
