// Command tool runs a real rate limit service, github.com/envoyproxy/ratelimit, with a Redis inside of the process. It knows one
// domain, marrow, without limits: those come along with the questions. It stands in a module of its own, so that what it
// needs is none of the product's dependencies.
//
// Usage: tool GRPC-PORT
package main

import (
	"log"
	"os"
	"path/filepath"

	"github.com/alicebob/miniredis/v2"
	"github.com/envoyproxy/ratelimit/src/service_cmd/runner"
	"github.com/envoyproxy/ratelimit/src/settings"
)

const config = "domain: marrow\n"

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: tool GRPC-PORT")
	}
	redis, err := miniredis.Run()
	if err != nil {
		log.Fatal(err)
	}
	defer redis.Close()
	dir, err := os.MkdirTemp("", "ratelimit")
	if err != nil {
		log.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "config"), 0o700); err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config", "config.yaml"), []byte(config), 0o600); err != nil {
		log.Fatal(err)
	}
	for name, value := range map[string]string{
		"REDIS_URL": redis.Addr(), "REDIS_SOCKET_TYPE": "tcp", "RUNTIME_ROOT": dir, "RUNTIME_SUBDIRECTORY": "", "RUNTIME_WATCH_ROOT": "false",
		"USE_STATSD": "false", "GRPC_PORT": os.Args[1], "PORT": "18080", "DEBUG_PORT": "16070", "LOG_LEVEL": "warn",
	} {
		if err := os.Setenv(name, value); err != nil {
			log.Fatal(err)
		}
	}
	r := runner.NewRunner(settings.NewSettings())
	r.Run()
}
