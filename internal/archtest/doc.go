// Package archtest holds the house's rules as tests: who may import whom, how
// long files and functions may be, what every room must say of itself. Each
// rule is a row with its reason; `make canary` proves that a broken rule is seen.
package archtest
