// Package clienthello reads the server name and the application protocols from the first message of a TLS client, without
// answering it. It is pure: bytes in, facts out. Whoever routes TLS without ending it uses it.
//
// It never holds more than Limit bytes, allocates nothing that a client's numbers ask for, and says nothing about whether
// the client may be trusted: a name here is a wish.
//
// Invariants:
//   - more bytes never change an answer that was complete (FuzzParse)
//   - what crypto/tls sends is understood, in one record or in many (TestStandardClient)
//   - a message larger than Limit is refused before it is read (TestLimit)
//
// Neighbours: edge chooses chains by what is found here.
package clienthello
