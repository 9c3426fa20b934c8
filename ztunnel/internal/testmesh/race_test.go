//go:build race

package testmesh_test

const raceDetector = true
