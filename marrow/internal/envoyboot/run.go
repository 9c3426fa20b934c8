package envoyboot

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/marrowmesh/marrow/internal/conf"
)

// Options are what a person chooses.
type Options struct {
	Envoy    string   // the program; a name is looked up in PATH
	LogLevel string   // Envoy's; empty is warning
	Args     []string // further arguments for Envoy
	// Concurrency is the number of worker threads; 0 is one per processor.
	Concurrency int
	Print       bool // write the bootstrap to standard output and end
}

// Run reads the pod's environment and becomes Envoy, which gets an empty one: everything is in the bootstrap. It returns
// only when that fails, or after printing.
func Run(r *conf.Reader, o Options) error {
	c, err := Load(r)
	if err != nil {
		return err
	}
	tokenPath, err := writeTokenSource(c)
	if err != nil {
		return err
	}
	bootstrap, err := Bootstrap(c, tokenPath)
	if err != nil {
		return fmt.Errorf("make the bootstrap: %w", err)
	}
	text, err := protojson.Marshal(bootstrap)
	if err != nil {
		return fmt.Errorf("print the bootstrap: %w", err)
	}
	if o.Print {
		_, err := fmt.Fprintln(os.Stdout, string(text))
		return err
	}
	program, err := exec.LookPath(o.Envoy)
	if err != nil {
		return fmt.Errorf("find Envoy: %w; give its path with --envoy", err)
	}
	if err := syscall.Exec(program, arguments(program, string(text), o), []string{}); err != nil {
		return fmt.Errorf("become %s: %w", program, err)
	}
	return nil
}

// arguments pass the bootstrap itself, so that no file has to be cleaned up.
func arguments(program, bootstrap string, o Options) []string {
	level := o.LogLevel
	if level == "" {
		level = "warning"
	}
	args := []string{
		program, "--config-yaml", bootstrap, "--disable-hot-restart", "--drain-time-s", "45", "--drain-strategy", "immediate",
		"--log-level", level,
	}
	if o.Concurrency > 0 {
		args = append(args, "--concurrency", strconv.Itoa(o.Concurrency))
	}
	return append(args, o.Args...)
}

// writeTokenSource makes the file by which Envoy subscribes to the token; Envoy watches both files.
func writeTokenSource(c Config) (string, error) {
	token, err := os.ReadFile(c.TokenFile)
	if err != nil {
		return "", fmt.Errorf("read the service-account token: %w", err)
	}
	if strings.TrimSpace(string(token)) == "" {
		return "", fmt.Errorf("the service-account token file %s is empty", c.TokenFile)
	}
	text, err := tokenSource(c.TokenFile)
	if err != nil {
		return "", fmt.Errorf("describe the token to Envoy: %w", err)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return "", fmt.Errorf("make MARROW_ENVOY_DIR: %w", err)
	}
	path := filepath.Join(c.Dir, "token.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return "", fmt.Errorf("write Envoy's token subscription: %w", err)
	}
	return path, nil
}

func tokenSource(file string) ([]byte, error) {
	secret := &tlsv3.Secret{Name: tokenSecret, Type: &tlsv3.Secret_GenericSecret{GenericSecret: &tlsv3.GenericSecret{
		Secret: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: file}},
	}}}
	body, err := anypb.New(secret)
	if err != nil {
		return nil, err
	}
	return protojson.Marshal(&discoveryv3.DiscoveryResponse{VersionInfo: "0", Resources: []*anypb.Any{body}})
}
