//go:build race

package phases_test

const raceDetector = true
