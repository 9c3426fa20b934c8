// Package cli is the command line: one file per verb.
//
// What it does: parses flags, calls the library that does the work, prints.
//
// What it never does: it holds no logic of the lab or the mesh; whatever a
// test or the demo may want too is in internal/lab.
//
// Invariants: an error names what to do and ends with a status other than 0
// (TestScripts); a command run by `lab exec` gives its own status through.
//
// Neighbours: internal/lab, marrow/internal/shopapp.
package cli
