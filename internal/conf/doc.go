// Package conf is the only reader of the environment. A binary's config room
// asks a Reader for typed values and gets one error that names everything that
// is wrong, before anything listens.
//
// It never decides what a value means to the product, never logs and keeps no
// global state. It never puts a value into an error when the field was read
// with Secret.
//
// Each getter takes the name, the default and a sentence that says unit and
// meaning of zero; Fields gives them back for help texts.
//
// Invariants:
//   - all errors are reported together (TestErrorsAreJoined);
//   - a name that begins with MARROW_ and was not asked for is an error
//     (TestUnknownMarrowNames);
//   - a secret's value never appears in an error (TestSecretsStaySecret);
//   - a config error ends the process with code 64 (TestExitCode).
//
// Neighbours: X/internal/config of each binary; run.Main turns *Error into the
// exit code.
package conf
