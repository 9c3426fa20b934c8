package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/marrowmesh/marrow/marrow/internal/shopapp"
)

// appCommand is the demo's application. It is hidden: manifests run it.
func appCommand() *cobra.Command {
	c := &cobra.Command{Use: "app", Short: "The demo's application", Hidden: true}
	c.AddCommand(serveCommand(), clientCommand(), fetchCommand())
	return c
}

func serveCommand() *cobra.Command {
	var cfg shopapp.ServeConfig
	c := &cobra.Command{
		Use: "serve", Short: "Answer HTTP/1.1, HTTP/2 in clear text and TCP lines", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return shopapp.Serve(c.Context(), cfg, func(addrs ...net.Addr) {
				_, _ = fmt.Fprintf(c.OutOrStdout(), "%s %s listens on %v\n", cfg.Name, cfg.Version, addrs)
			})
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.Name, "name", "app", "who answers")
	f.StringVar(&cfg.Version, "version", "v1", "which version answers")
	f.StringVar(&cfg.Marker, "marker", shopapp.DefaultMarker, "text that every answer carries")
	f.StringVar(&cfg.Listen, "listen", ":8080", "HTTP address; empty = none")
	f.StringVar(&cfg.TCP, "tcp", "", "address of the line echo; empty = none")
	f.StringArrayVar(&cfg.Call, "call", nil, "URL to ask on each request (repeatable)")
	f.DurationVar(&cfg.CallTimeout, "call-timeout", 10*time.Second, "limit of such a call")
	return c
}

type clientFlags struct {
	load    shopapp.ClientConfig
	hold    shopapp.HoldConfig
	headers []string
	tcp     string
	holdTCP bool
	asJSON  bool
	each    bool
}

func clientCommand() *cobra.Command {
	var o clientFlags
	c := &cobra.Command{
		Use: "client", Short: "Send requests, or hold a connection, and report", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.tcp != "" || o.holdTCP {
				return o.runHold(c)
			}
			return o.runLoad(c)
		},
	}
	f := c.Flags()
	f.StringVar(&o.load.URL, "url", "", "what to ask")
	f.StringVar(&o.load.Method, "method", "GET", "with which method")
	f.StringVar(&o.load.Body, "body", "", "body of each request")
	f.StringArrayVarP(&o.headers, "header", "H", nil, "header `name: value` (repeatable)")
	f.StringVar(&o.load.Marker, "marker", shopapp.DefaultMarker, "text that every request carries")
	f.Float64Var(&o.load.Rate, "rate", 0, "requests per second; 0 = one after the other")
	f.IntVar(&o.load.Count, "count", 0, "end after so many; 0 = no limit")
	f.DurationVar(&o.load.Duration, "duration", 0, "end after this time; 0 = no limit")
	f.DurationVar(&o.load.Timeout, "timeout", 10*time.Second, "limit of one request")
	f.BoolVar(&o.load.KeepAlive, "keepalive", false, "use connections again")
	f.BoolVar(&o.load.HTTP2, "h2c", false, "speak HTTP/2 in clear text")
	f.StringVar(&o.tcp, "tcp", "", "address of a line echo to hold a connection to")
	f.BoolVar(&o.holdTCP, "hold", false, "hold one connection and send a numbered line every --interval")
	f.DurationVar(&o.hold.Interval, "interval", 100*time.Millisecond, "time between lines of a held connection")
	f.DurationVar(&o.hold.Gap, "gap", time.Second, "an answer later than this is a gap")
	f.BoolVar(&o.asJSON, "json", false, "print the report as JSON")
	f.BoolVar(&o.each, "each", false, "print every result as a line of JSON")
	return c
}

func (o *clientFlags) runLoad(c *cobra.Command) error {
	out := c.OutOrStdout()
	cfg := o.load
	cfg.Headers = map[string]string{}
	for _, h := range o.headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			return usage(c, "--header %q: write it as \"name: value\"", h)
		}
		cfg.Headers[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	if cfg.URL == "" {
		return usage(c, "--url is missing")
	}
	if o.each {
		cfg.Each = func(r shopapp.Result) { line(out, r) }
	}
	summary, err := shopapp.Load(c.Context(), cfg)
	if err != nil {
		return err
	}
	if o.asJSON {
		return printJSON(out, summary)
	}
	_, err = fmt.Fprint(out, summary)
	return err
}

// line prints one result; a reader that left is no reason to stop.
func line(w io.Writer, v any) { _ = json.NewEncoder(w).Encode(v) }

func (o *clientFlags) runHold(c *cobra.Command) error {
	cfg := o.hold
	cfg.Addr, cfg.Marker, cfg.Duration = o.tcp, o.load.Marker, o.load.Duration
	if cfg.Addr == "" {
		return usage(c, "--hold needs --tcp HOST:PORT")
	}
	out := c.OutOrStdout()
	if o.each {
		cfg.Each = func(e shopapp.HoldEvent) { line(out, e) }
	}
	report, err := shopapp.Hold(c.Context(), cfg)
	if err != nil {
		return err
	}
	if o.asJSON {
		return printJSON(out, report)
	}
	_, err = fmt.Fprintf(out, "%d lines sent, %d came back, %d gaps, longest wait %v, open at the end: %t %s\n",
		report.Sent, report.Received, report.Gaps, report.Longest.Round(time.Millisecond), report.Open, report.Error)
	return err
}
