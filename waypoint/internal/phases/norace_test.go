//go:build !race

package phases_test

const raceDetector = false
