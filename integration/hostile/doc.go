// Package hostile attacks port 15008 of a real ztunnel, as a peer with a valid
// certificate of the mesh and as one without, while a neighbour's round trips go
// through the same proxy.
//
// One table holds every attack: a name, what one connection does, and how it may
// end. For each the test asserts that the connection ended as the table says, that
// the proxy's memory stayed below a stated bound, that no goroutine, socket or file
// was left, and that the neighbour got every answer. It prints, per attack, the
// proxy's memory and CPU and the neighbour's p99 with and without the attack, from
// interleaved windows; the ratio itself is judged by perf on a quiet machine
// (MARROW_HOSTILE_WINDOW=2s makes the windows longer).
//
// The other direction has its own table (impostor_test.go): the far end of a tunnel
// is in hostile hands, and the client's proxy is watched.
//
// The attacker runs in a pod beside the mesh, at the lowest priority: in life it
// burns another machine's CPU. It speaks through its own framer and TLS records
// (peer_test.go, forge_test.go), which keep no rule.
//
// A new attack is a row in attacks_test.go or tlsattacks_test.go.
//
// Neighbours: integration/arena (lab, agents), integration/h2spec (the rules'
// letter), integration/ends (how connections end).
package hostile
