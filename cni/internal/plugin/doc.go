// Package plugin answers the CNI plugin, which asks on a Unix socket that a
// new pod be enrolled before its first process runs.
//
// It reads the request and translates outcomes; it enrols nothing itself.
//
// Invariants: a request that is not understood is 400, everything else that
// does not end enrolled is 500 with the reason (TestAnswers); a request body
// is bounded (TestBodyIsBounded).
//
// Neighbours: pods.Manager.Enrol does the work.
package plugin
