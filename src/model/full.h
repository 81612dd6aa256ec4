// Full fine-tuning: every weight is trained. The flat buffer of trainables has the layout of the
// images (model/weights.h), element for element, so that what is updated is what is computed with.
#pragma once

#include "model/trainable.h"
#include "model/weights.h"

namespace utrain {

// Hugging Face's tensors, a unit an image.
TrainableLayout full_layout(const Architecture& architecture);

}  // namespace utrain
