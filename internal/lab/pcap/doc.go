// Package pcap writes and reads packet captures and looks for bytes in them.
//
// What it does: Writer and Reader speak the classic pcap format (nanoseconds,
// Ethernet) that Wireshark and tcpdump open. Scan counts the packets of a
// capture and the occurrences of a marker in their payload, per flow; TCP
// streams are put together first, so that a marker cut by a segment boundary
// is found, and a segment seen twice (on two links, or sent again) counts once.
//
// What it never does: it opens no socket and decrypts nothing.
//
// Invariants: what is written reads back equal (TestRoundTrip); a marker is
// counted the same however the stream is cut, doubled and disordered
// (TestScanAnySegmentation); foreign bytes give an error, never a panic
// (FuzzScan).
//
// Neighbours: fabric writes captures; the demo and the lab's tests scan them.
package pcap
