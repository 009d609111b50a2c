// Command thumbnail makes a picture small: {"image": "base64 of a PNG"} on standard input becomes a PNG on standard output. It is an
// actor of opscore.yaml: it knows nothing of tasks.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image"
	"image/png"
	"os"
)

const size = 32 // pixels of the longer side

func main() {
	var in struct{ Image []byte }
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		fail(err)
	}
	if err := shrink(in.Image); err != nil {
		fail(err)
	}
}

// fail tells why on standard error, which becomes the task's log. Exit status 65 fails the task now: the picture will not get better.
func fail(err error) {
	fmt.Fprintln(os.Stderr, "thumbnail:", err)
	os.Exit(65)
}

// shrink takes the nearest pixels.
func shrink(doc []byte) error {
	big, err := png.Decode(bytes.NewReader(doc))
	if err != nil {
		return err
	}
	from := big.Bounds()
	longer := max(from.Dx(), from.Dy())
	small := image.NewRGBA(image.Rect(0, 0, max(1, from.Dx()*size/longer), max(1, from.Dy()*size/longer)))
	for y := range small.Rect.Dy() {
		for x := range small.Rect.Dx() {
			small.Set(x, y, big.At(from.Min.X+x*longer/size, from.Min.Y+y*longer/size))
		}
	}
	return png.Encode(os.Stdout, small)
}
