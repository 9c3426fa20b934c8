package relay

import (
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/marrowmesh/marrow/internal/burst"
)

// cpu is the processor time of this process so far.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// ways are the two that a direction between sockets can work in.
func ways() map[string]func(src, dst *net.TCPConn) error {
	return map[string]func(src, dst *net.TCPConn) error{
		"readwrite": func(src, dst *net.TCPConn) error {
			return burst.Feed(src, func(s *burst.Slab, n int) (int, error) { return dst.Write(s.B[burst.Head : burst.Head+n]) })
		},
		"splice": func(src, dst *net.TCPConn) error {
			s, err := newSplicer(burst.NewFeeder(src), dst, func(int) {})
			if err != nil {
				return err
			}
			for ended := false; !ended && err == nil; s.small = 0 {
				ended, err = s.run()
			}
			return err
		},
	}
}

// BenchmarkWays moves messages of one size to a reader who answers each, or, as bulk, just reads.
// cpu-ns/op has the client's and the server's work in it, the same for both ways.
func BenchmarkWays(b *testing.B) {
	for _, size := range []int{1 << 10, 16 << 10, 64 << 10, 1 << 20} {
		for _, talk := range []bool{true, false} {
			for way, move := range ways() {
				b.Run(fmt.Sprintf("size=%d/talk=%v/way=%s", size, talk, way), func(b *testing.B) {
					client, src := pair(b)
					dst, srv := pair(b)
					ended := make(chan error, 2)
					go func() { ended <- move(src, dst); _ = dst.CloseWrite() }()
					go func() {
						buf := make([]byte, 1<<20)
						for {
							n, err := io.ReadFull(srv, buf[:size])
							if err != nil {
								ended <- nil
								return
							}
							if talk && n == size {
								_, _ = src.Write(buf[:1]) // straight back: one way is measured
							}
						}
					}()
					msg, one := make([]byte, size), make([]byte, 1)
					b.SetBytes(int64(size))
					start := cpu()
					for b.Loop() {
						_, _ = client.Write(msg)
						if talk {
							_, _ = io.ReadFull(client, one)
						}
					}
					b.ReportMetric(float64((cpu()-start).Nanoseconds())/float64(b.N), "cpu-ns/op")
					_ = client.CloseWrite()
					<-ended
					<-ended
					_, _, _, _ = client.Close(), src.Close(), dst.Close(), srv.Close()
				})
			}
		}
	}
}
