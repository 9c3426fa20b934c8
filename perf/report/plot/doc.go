// Package plot draws the performance report's figures as SVG text.
//
// What it does: lays out five kinds of figure (latency by percentile, paired
// dots, drift over rounds, bars with intervals, ratios with intervals), each
// with title, axes that name their unit, legend, and a description for those who
// cannot see it. One style sheet holds all colours, for light and dark.
//
// What it never does: it computes no statistics, reads no file and knows no
// implementation by name: the caller gives labels and colours by number.
//
// Invariants:
//   - the same figure gives the same bytes, and every figure is well-formed XML
//     with a title, whatever the labels hold (TestFiguresAreXML, FuzzLabels);
//   - nothing is drawn at a place that is no number, whatever the values are
//     (TestOddValues).
//
// Neighbours: report, which chooses what is drawn.
package plot
