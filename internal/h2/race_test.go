//go:build race

package h2

// raceDetector: it has sync.Pool forget at random.
const raceDetector = true
