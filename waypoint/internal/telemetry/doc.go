// Package telemetry counts requests and connections in Istio's standard series, as reporter "waypoint" or, of a gateway,
// "source" (TestGatewayReportsAsSource), and writes access log lines.
//
// It does not know where its numbers come from: phases gives it finished entries. A label whose value is not known is "unknown".
//
// Invariants: every request is counted exactly once, refused ones too (TestRequestLabels); the bytes of a connection are counted while
// it is open and add up to the whole at its end (TestConnBytesAddUp); a line is written whole (TestLinesAreWhole);
// what clients put into labels that a configuration added makes a bounded number of series (TestCustomSeriesAreBounded).
//
// Neighbours: table says how a chain wants to be counted, phases fills it, admin shows the series.
package telemetry
