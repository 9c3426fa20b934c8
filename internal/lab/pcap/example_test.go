package pcap_test

import (
	"bytes"
	"fmt"
	"time"

	"github.com/marrowmesh/marrow/internal/lab/pcap"
)

func ExampleScan() {
	var file bytes.Buffer
	w, err := pcap.NewWriter(&file)
	if err != nil {
		fmt.Println(err)
		return
	}
	frame := append(make([]byte, 14), "a secret in clear text"...)
	if err := w.Write(pcap.Packet{Time: time.Unix(1, 0), Data: frame}); err != nil {
		fmt.Println(err)
		return
	}
	report, err := pcap.Scan(&file, []byte("secret"))
	fmt.Println(report.Packets, report.Occurrences, err)
	// Output: 1 1 <nil>
}
