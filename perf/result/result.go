package result

import "time"

// Names of the implementations that every run knows. All other names are peers.
const (
	Direct = "direct" // no mesh: the pods' own TCP
	Marrow = "marrow"
)

// Scenario is one way to load the mesh.
type Scenario struct {
	Name  string `json:"name"`  // as in --scenario, e.g. "bulk-1-up"
	Title string `json:"title"` // one line for the report
	Goal  string `json:"goal"`  // P1 to P12, or empty
	// Metrics are the rows that this scenario gives.
	Metrics []Metric `json:"metrics"`
	// Quick scenarios are in the set that ends within five minutes.
	Quick bool `json:"quick"`
	// MaxRounds bounds the rounds of a scenario that is slow and hardly varies
	// (memory after a burst); 0 = as many as the run asks for.
	MaxRounds int `json:"max_rounds,omitempty"`
	// Seconds is how long one block of it takes, roughly: for the time left.
	Seconds float64 `json:"seconds"`
}

// Metric is one figure of a scenario. Its value in a Sample stands under Name.
type Metric struct {
	Scenario string `json:"scenario"`
	Name     string `json:"name"` // e.g. "cpu_s_per_gb_proxies"
	Unit     string `json:"unit"` // e.g. "CPU-s/GB"
	Goal     string `json:"goal"` // P1 to P12, or empty: shown, not judged
	// HigherIsBetter is true of rates.
	HigherIsBetter bool `json:"higher_is_better"`
	// Direct: the figure exists without a mesh too.
	Direct bool `json:"direct"`
	// Added: what direct has in the same round is taken off before the ratio
	// is formed (P5: added latency). Implies Direct.
	Added bool `json:"added,omitempty"`
	// Counter: a deterministic count, not a time; gates CI.
	Counter bool `json:"counter,omitempty"`
	// Shown only: it describes the load or the machine, and nobody is better by
	// having more or less of it.
	Shown bool `json:"shown,omitempty"`
	// Ship and Ahead bound the ratio to a peer as GOALS.md has it; 0 = none.
	Ship  float64 `json:"ship,omitempty"`
	Ahead float64 `json:"ahead,omitempty"`
	// Bound is the absolute bound of a counter for marrow; 0 = none.
	Bound float64 `json:"bound,omitempty"`
}

// Block is one entry of the schedule: this scenario, with this implementation,
// in this round.
type Block struct {
	Round    int    `json:"round"`
	Scenario string `json:"scenario"`
	Impl     string `json:"impl"`
}

// Sample is what one block gave.
type Sample struct {
	Scenario string    `json:"scenario"`
	Impl     string    `json:"impl"`
	Round    int       `json:"round"`
	Start    time.Time `json:"start"`
	Seconds  float64   `json:"seconds"` // of the measured part
	// Metrics holds a value per metric name. A name that is absent was not
	// measured (direct has no proxies); it is not zero.
	Metrics map[string]float64 `json:"metrics"`
	// Histogram is the latency of the block's operations, where there is one.
	Histogram []Bucket `json:"histogram,omitempty"`
	Noise     Noise    `json:"noise"`
	// Failed says why the block gave nothing; such a sample has no metrics.
	Failed string `json:"failed,omitempty"`
}

// Bucket counts operations that took at most UpTo microseconds and more than
// the bucket before. Buckets are in ascending order and none is empty.
type Bucket struct {
	UpTo  float64 `json:"up_to_us"`
	Count uint64  `json:"count"`
}

// Noise is what disturbed a block.
type Noise struct {
	// Steal is the part of the machine's CPU time that the hypervisor gave to
	// others, 0 to 1.
	Steal float64 `json:"steal"`
	// Calibration is the time of a fixed loop right before the block divided by
	// the fastest time of that loop in the run up to then: 1 = undisturbed.
	Calibration float64 `json:"calibration"`
	// Foreign is the part of the machine's CPU time that processes outside the
	// bench and its labs took, 0 to 1.
	Foreign float64 `json:"foreign"`
}

// DroppedRound is a round of one scenario that counts for no implementation.
type DroppedRound struct {
	Scenario string `json:"scenario"`
	Round    int    `json:"round"` // 0: every round of one implementation, which is left out of the scenario
	Why      string `json:"why"`
}

// Machine is where and with what a run was made.
type Machine struct {
	Host         string            `json:"host,omitempty"`
	CPU          string            `json:"cpu"`       // model name
	Cores        int               `json:"cores"`     // that this process may use
	CPUFlags     []string          `json:"cpu_flags"` // those that matter: aes, vaes, vpclmulqdq, avx2, avx512f, ...
	AESPath      string            `json:"aes_path"`  // what the flags allow, in words
	MemoryMiB    int               `json:"memory_mib"`
	Kernel       string            `json:"kernel"`
	Mitigations  map[string]string `json:"mitigations"` // vulnerability -> how the kernel deals with it
	Hypervisor   bool              `json:"hypervisor"`
	GoVersion    string            `json:"go_version"`
	Commit       string            `json:"commit"`
	Started      time.Time         `json:"started"`
	Command      []string          `json:"command"`       // to repeat the run
	Versions     map[string]string `json:"versions"`      // implementation -> version and path of its ztunnel
	CipherSuites map[string]string `json:"cipher_suites"` // implementation -> suite really negotiated on 15008
	KeyExchanges map[string]string `json:"key_exchanges"` // implementation -> group really negotiated
	Environment  map[string]string `json:"environment"`   // implementation -> extra environment of its proxies
	Seed         uint64            `json:"seed"`          // of the schedule
	Wall         float64           `json:"wall_seconds"`  // of the whole run
}

// Run is everything that a run measured.
type Run struct {
	Machine   Machine        `json:"machine"`
	Scenarios []Scenario     `json:"scenarios"`
	Impls     []string       `json:"impls"` // in the order of the tables: direct, marrow, peers
	Samples   []Sample       `json:"samples"`
	Dropped   []DroppedRound `json:"dropped"`
}

// File is results.json: one row per metric.
type File struct {
	Machine Machine        `json:"machine"`
	Rows    []Row          `json:"rows"`
	Dropped []DroppedRound `json:"dropped,omitempty"`
}

// Row is one metric of one scenario, over all rounds that count.
type Row struct {
	Goal     string             `json:"goal"`
	Scenario string             `json:"scenario"`
	Metric   string             `json:"metric"`
	Unit     string             `json:"unit"`
	Values   map[string]float64 `json:"values"` // implementation -> typical value
	Ratio    map[string]Ratio   `json:"ratio"`  // peer -> marrow divided by peer
	Rounds   int                `json:"rounds"` // that count
	// Won counts, per peer, the rounds in which marrow was better.
	Won map[string]int `json:"won"`
	// Verdict says per peer where the row stands against its goal.
	Verdict map[string]string `json:"verdict,omitempty"`
	// HigherIsBetter and Counter are copied from the metric, so that the file can be compared alone.
	HigherIsBetter bool `json:"higher_is_better,omitempty"`
	Counter        bool `json:"counter,omitempty"`
	// Added, Ship, Ahead and Bound are copied too. Values are as measured even
	// where Added is set; Ratio is then of what each adds to direct.
	Added bool    `json:"added,omitempty"`
	Ship  float64 `json:"ship,omitempty"`
	Ahead float64 `json:"ahead,omitempty"`
	Bound float64 `json:"bound,omitempty"`
	// PerRound holds the value of each round that counts, in order, per
	// implementation: for comparing two files.
	PerRound map[string][]float64 `json:"per_round,omitempty"`
}

// Ratio is marrow divided by a peer, with its 95 % interval.
type Ratio struct {
	Point float64 `json:"point"`
	Low   float64 `json:"low"`
	High  float64 `json:"high"`
}
